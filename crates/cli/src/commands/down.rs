//! `maille down`: stop the mesh and leave nothing behind.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::Outcome;
use crate::output::out;

#[derive(Debug, clap::Args)]
pub(crate) struct DownArgs {
    /// Data folder of the mesh.
    #[arg(long, value_name = "DIR", default_value = crate::DEFAULT_DATA_DIR, env = "MAILLE_DATA_DIR")]
    data_dir: PathBuf,
}

pub(crate) fn run(args: &DownArgs) -> Result<Outcome> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "`maille down` needs root, as `maille up` does; try it with sudo"
    );
    if !args.data_dir.exists() {
        out!("no mesh has data folder {}", args.data_dir.display());
        return Ok(Outcome::Fine);
    }
    ensure!(
        maille_standalone::DataDir::open(&args.data_dir)?.is_of_a_mesh(),
        "{} is no data folder of a mesh; nothing was touched",
        args.data_dir.display()
    );
    let ran = maille_standalone::teardown(&args.data_dir)?;
    let _ = std::fs::remove_file(args.data_dir.join(super::up::STARTED));
    match ran {
        true => out!("the mesh is down; its objects stay in {}", args.data_dir.display()),
        false => out!("no mesh ran; what an earlier one left is cleared"),
    }
    Ok(Outcome::Fine)
}
