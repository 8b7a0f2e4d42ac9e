use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::{CipherSuite, SupportedCipherSuite};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // Post-quantum first; the others for peers that lack it. The client sends a share for
        // X25519 beside the hybrid one, so a classic peer costs no extra round trip.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        cipher_suites: fast_first(),
        ..aws_lc_rs::default_provider()
    })
});

/// AES-128 before AES-256, as Envoy (BoringSSL) has it where AES is in hardware: four rounds of fourteen less for each
/// block, and what breaks first is neither. The others as rustls orders them, which is AES-256 first: for whom the
/// key exchange has to be post-quantum, [`crate::Parameters::post_quantum_only`] leaves it so.
fn fast_first() -> Vec<SupportedCipherSuite> {
    let mut suites = aws_lc_rs::DEFAULT_CIPHER_SUITES.to_vec();
    suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    suites
}

/// The cryptography of all TLS in Maille: aws-lc, with X25519MLKEM768 as first key exchange.
///
/// It is handed to each configuration explicitly; the process-wide default of rustls is neither
/// set nor read, so no other library can change it.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}
