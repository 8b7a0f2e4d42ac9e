use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        // Post-quantum first; the others for peers that lack it. The client sends a share for
        // X25519 beside the hybrid one, so a classic peer costs no extra round trip.
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    })
});

/// The cryptography of all TLS in Maille: aws-lc, with X25519MLKEM768 as first key exchange.
///
/// It is handed to each configuration explicitly; the process-wide default of rustls is neither
/// set nor read, so no other library can change it.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}
