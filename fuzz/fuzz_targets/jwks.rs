#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| maille_fuzz::run("jwks", input));
