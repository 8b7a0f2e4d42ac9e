//! Running `ip` and `nft`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::NetError;

/// Where the tools are, whatever `PATH` the caller has: `sbin` is often missing from it.
const TOOL_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin";

/// Runs a tool to its end with `input` on standard input; answers what it printed.
pub(crate) fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String, NetError> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", TOOL_PATH)
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| NetError::Missing { program: program.to_owned(), source })?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // Both tools read all of their input before they print, so this cannot dead-lock; a tool that
        // gave up early says why on standard error, which is more telling than a broken pipe.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(NetError::io(format!("wait for `{program}`")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetError::Command {
        command: format!("{program} {}", args.join(" ")).trim_end().to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
