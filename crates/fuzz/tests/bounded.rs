//! The fuzz targets without a fuzzer: every file of the corpus, those files with a few bytes changed, and random bytes.
//!
//! `MAILLE_CASES` says how many inputs each target gets (1,000), `MAILLE_SEED` which.

use std::path::Path;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a file")).collect()
}

/// Removes, doubles, replaces or inserts, here and there.
fn change(input: &[u8], corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut changed = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(changed.len() + 1);
        let end = (at + random.below(9)).min(changed.len());
        match random.below(5) {
            0 => drop(changed.drain(at..end)),
            1 => {
                let part = changed[at..end].to_vec();
                changed.splice(at..at, part);
            }
            2 if at < changed.len() => changed[at] = random.below(256) as u8,
            3 => changed.insert(at, b"\0\n\\/{}[]*%.:\"'#&~"[random.below(17)]),
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(30)).min(other.len());
                changed.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    changed
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[test]
fn no_target_finds_a_fault_in_seeds_and_their_neighbours() {
    let cases = number("MAILLE_CASES", 1_000);
    for (name, target) in maille_fuzz::TARGETS {
        let mut random = Random(number("MAILLE_SEED", 1));
        let seeds = corpus(name);
        seeds.iter().for_each(|seed| target(seed));
        for case in 0..cases {
            let input = match case % 4 {
                0 => (0..random.below(200)).map(|_| random.below(256) as u8).collect(),
                _ => change(&seeds[random.below(seeds.len())], &seeds, &mut random),
            };
            target(&input);
        }
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("the fuzzer's crate is there");
    for (name, _) in maille_fuzz::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no target {name}");
    }
}
