//! One sidecar from a file of facts, for measurements: `sidecar FILE`.

use std::path::PathBuf;

/// As in the real binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from);
    let path = path.ok_or_else(|| anyhow::anyhow!("usage: sidecar FILE"))?;
    maille_proxy::run_static(&path, maille_proxy::Memory::default())
}
