//! Runs the commands of a document in order and compares what they print with what it says.
//!
//! Commands stand in ```` ```console ```` blocks: `$ ` begins a command, `> ` continues it, every other line is what it
//! prints. `…` stands for any text within a line, and alone on a line for any number of lines; runs of blanks are
//! equal. `[exit code N]` says that a command ends with N and not with 0. Commands of a block marked
//! ```` ```console eventually ```` are run again until they print what the document says, within a bound: for what
//! the mesh shows a moment later. All share one shell, so that variables live on.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);
/// How long a command of an `eventually` block is run again.
const EVENTUALLY_LIMIT: Duration = Duration::from_secs(60);

/// One command, and what the document says it prints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    exit_code: i32,
    eventually: bool,
}

/// The commands of a document.
pub(crate) fn steps(text: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut block: Option<bool> = None;
    let mut is_fresh = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let Some(eventually) = block else {
            block = match line.trim_end() {
                "```console" => Some(false),
                "```console eventually" => Some(true),
                _ => None,
            };
            is_fresh = block.is_some();
            continue;
        };
        if line.trim_end() == "```" {
            block = None;
        } else if let Some(command) = line.strip_prefix("$ ") {
            let command = command.to_owned();
            steps.push(Step { line: number, command, expected: Vec::new(), exit_code: 0, eventually });
            is_fresh = false;
        } else {
            let step = steps.last_mut().filter(|_| !is_fresh);
            let step = step.with_context(|| format!("line {number}: a block begins with `$ `"))?;
            let continues = step.expected.is_empty().then(|| line.strip_prefix('>')).flatten();
            let code = line.strip_prefix("[exit code ").and_then(|rest| rest.strip_suffix(']'));
            if let Some(more) = continues {
                step.command.push('\n');
                step.command.push_str(more.strip_prefix(' ').unwrap_or(more));
            } else if let Some(code) = code {
                step.exit_code = code.parse().with_context(|| format!("line {number}"))?;
            } else {
                step.expected.push(line.to_owned());
            }
        }
    }
    ensure!(block.is_none(), "the last block of commands does not end");
    Ok(steps)
}

/// Runs every step; an error names the line of the document, what it says and what was printed.
pub(crate) fn run(name: &str, steps: &[Step], shell: &mut Shell) -> Result<()> {
    for step in steps {
        let started = Instant::now();
        loop {
            let (code, printed) =
                shell.run(&step.command).with_context(|| format!("{name}:{}", step.line))?;
            let is_as_written = code == step.exit_code && matches(&step.expected, &printed);
            if is_as_written {
                break;
            }
            if !step.eventually || started.elapsed() > EVENTUALLY_LIMIT {
                bail!(
                    "{name}:{}: $ {}\n--- the document says (exit code {})\n{}\n--- printed (exit code {code})\n{}",
                    step.line,
                    step.command,
                    step.exit_code,
                    step.expected.join("\n"),
                    printed.trim_end(),
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

/// Whether what was printed is what the document says.
fn matches(expected: &[String], printed: &str) -> bool {
    let printed: Vec<String> = printed.trim_end().lines().map(blanks).collect();
    let expected: Vec<String> = expected.iter().map(|line| blanks(line)).collect();
    lines_match(&expected, &printed)
}

fn lines_match(expected: &[String], printed: &[String]) -> bool {
    match expected.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..]))
        }
        Some((first, rest)) => printed
            .split_first()
            .is_some_and(|(line, after)| line_matches(first, line) && lines_match(rest, after)),
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Runs of blanks become one; those at the end go.
fn blanks(line: &str) -> String {
    let indent = if line.starts_with(' ') { " " } else { "" };
    format!("{indent}{}", line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A shell that lives as long as the document.
pub(crate) struct Shell {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<Vec<u8>>,
}

/// Reads commands that end with NUL; behind the output of each come NUL, the exit code, and NUL.
const LOOP: &str =
    r#"while IFS= read -r -d '' line <&3; do eval "$line" </dev/null 2>&1; printf '\0%d\0' "$?"; done"#;

impl Shell {
    /// Starts bash with the environment that `prepare` sets.
    pub(crate) fn start(prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-c", &format!("exec 3<&0 </dev/null; {LOOP}")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        prepare(&mut command);
        let mut child = command.spawn().context("cannot start bash")?;
        let stdin = child.stdin.take().context("bash has no input")?;
        let stdout = child.stdout.take().context("bash has no output")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let mut part = Vec::new();
            for byte in BufReader::new(stdout).bytes() {
                match byte {
                    Ok(0) => {
                        if sender.send(std::mem::take(&mut part)).is_err() {
                            return;
                        }
                    }
                    Ok(byte) => part.push(byte),
                    Err(_) => return,
                }
            }
        });
        Ok(Self { child, stdin, answers })
    }

    /// Exit code and output, both streams as one.
    pub(crate) fn run(&mut self, command: &str) -> Result<(i32, String)> {
        self.stdin.write_all(command.as_bytes())?;
        self.stdin.write_all(&[0])?;
        self.stdin.flush()?;
        let next = || {
            let answer = self.answers.recv_timeout(COMMAND_LIMIT);
            answer.with_context(|| format!("`{command}` did not end within {COMMAND_LIMIT:?}"))
        };
        let printed = String::from_utf8_lossy(&next()?).into_owned();
        let code = String::from_utf8_lossy(&next()?).trim().parse().context("no exit code")?;
        Ok((code, printed))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The comparison itself, since a comparison that always agrees would prove nothing.
pub(crate) fn comparison_is_strict() -> Result<()> {
    let text = "x\n```console\n$ echo a\na\n```\n```console eventually\n$ cat <<E\n> b\n> E\nb …\n[exit code 3]\n```\n";
    let steps = steps(text)?;
    ensure!(steps.len() == 2 && steps[1].command == "cat <<E\nb\nE" && steps[1].exit_code == 3, "{steps:?}");
    let says = |expected: &str, printed: &str| {
        let lines: Vec<String> = expected.lines().map(str::to_owned).collect();
        matches(&lines, printed)
    };
    for (expected, printed, agrees) in [
        ("a  b", "a b\n", true),
        ("a b", "a c", false),
        ("a", "a\nb", false),
        ("a\n…", "a\nb\nc", true),
        ("a\n…\nd", "a\nb\nc", false),
        ("pod/x-… created", "pod/x-17 created", true),
        ("pod/x-… created", "pod/x-17 deleted", false),
        ("", "error", false),
        ("…", "", true),
    ] {
        ensure!(says(expected, printed) == agrees, "'{expected}' and '{printed}' should agree: {agrees}");
    }
    let mut shell = Shell::start(|_| ())?;
    ensure!(shell.run("X=1; cat <<E\n$X\nE\nfalse")? == (1, "1\n".to_owned()));
    ensure!(shell.run("echo $X; cat")? == (0, "1\n".to_owned()), "variables live on, input is empty");
    let wrong = super::document::steps("```console\n$ echo a\nb\n```\n")?;
    ensure!(
        run("t", &wrong, &mut shell).is_err_and(|e| e.to_string().contains("t:2")),
        "differences are errors"
    );
    Ok(())
}
