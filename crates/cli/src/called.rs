//! How the binary is called: by which name, and with istioctl's flags in istioctl's places.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches};

/// A wrong argument, as sysexits count it and istioctl ends.
const USAGE: u8 = 64;

/// Commands that istioctl has, where its global flags may stand before the command's name.
const ISTIOCTLS: [&str; 14] = [
    "analyze",
    "authz",
    "exp",
    "experimental",
    "pc",
    "proxy-config",
    "proxy-status",
    "ps",
    "v",
    "validate",
    "version",
    "x",
    "describe",
    "des",
];

/// istioctl's global flags that have a value.
const GLOBAL: [&str; 8] =
    ["-n", "--namespace", "-i", "--istioNamespace", "-c", "--kubeconfig", "--context", "--data-dir"];

/// Whether the binary was called by the name `istioctl`.
pub(crate) fn as_istioctl() -> bool {
    let name = std::env::args_os().next();
    name.as_deref().map(Path::new).and_then(Path::file_name).is_some_and(|name| name == "istioctl")
}

/// The command line; the exit code if there is nothing to run.
pub(crate) fn parse<C: CommandFactory + FromArgMatches>() -> Result<C, ExitCode> {
    let istioctl = as_istioctl();
    let mut command = with_short_kubeconfig(C::command());
    if istioctl {
        command = command.name("istioctl").bin_name("istioctl").about("Verify a mesh, as istioctl does");
    }
    let arguments = reordered(std::env::args_os().collect());
    let parsed = command.try_get_matches_from(arguments).and_then(|matches| C::from_arg_matches(&matches));
    parsed.map_err(|error| {
        let asked_for_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if !istioctl || asked_for_help {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        let text = error.render().to_string();
        eprint!("Error: {}", text.strip_prefix("error: ").unwrap_or(&text));
        ExitCode::from(USAGE)
    })
}

/// `-c` means the kubeconfig wherever the command has no other use for it (`exec -c CONTAINER`).
fn with_short_kubeconfig(command: Command) -> Command {
    let is_free = command.get_arguments().all(|argument| argument.get_short() != Some('c'));
    let has_kubeconfig = command.get_arguments().any(|argument| argument.get_id() == "kubeconfig");
    let command = match is_free && has_kubeconfig {
        true => command.mut_arg("kubeconfig", |argument| argument.short('c')),
        false => command,
    };
    command.mut_subcommands(with_short_kubeconfig)
}

/// Global flags at the end, where the command that has them finds them: `istioctl -n shop proxy-config secret POD` is
/// `istioctl proxy-config secret POD -n shop`. Of commands that istioctl does not have, only those that stand before the
/// command's name, since behind it some have another meaning (`exec -c CONTAINER`).
fn reordered(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut all = arguments.clone().into_iter();
    let mut rest: Vec<OsString> = all.next().into_iter().collect();
    let mut globals = Vec::new();
    let mut behind = Vec::new();
    let mut command: Option<String> = None;
    while let Some(argument) = all.next() {
        let text = argument.to_str().unwrap_or_default().to_owned();
        if text == "--" {
            behind.push(argument);
            behind.extend(all.by_ref());
        } else if command.as_ref().is_some_and(|command| !ISTIOCTLS.contains(&command.as_str())) {
            rest.push(argument);
        } else if text == "-c" && command.is_none() {
            // By its long name, since not every command has the short one.
            globals.push(OsString::from("--kubeconfig"));
            globals.extend(all.next());
        } else if GLOBAL.contains(&text.as_str()) {
            globals.push(argument);
            globals.extend(all.next());
        } else if GLOBAL.iter().any(|flag| flag.starts_with("--") && text.starts_with(&format!("{flag}="))) {
            globals.push(argument);
        } else {
            if command.is_none() && !text.starts_with('-') {
                command = Some(text);
            }
            rest.push(argument);
        }
    }
    if command.is_none() {
        return arguments;
    }
    rest.extend(globals);
    rest.extend(behind);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn global_flags_may_stand_before_the_command() {
        for (given, taken) in [
            ("istioctl -n a proxy-config secret p", "istioctl proxy-config secret p -n a"),
            (
                "istioctl --context=b pc -c k secret p -o json",
                "istioctl pc secret p -o json --context=b -c k",
            ),
            ("istioctl x -n a describe pod p", "istioctl x describe pod p -n a"),
            ("istioctl analyze - -n a -- -x", "istioctl analyze - -n a -- -x"),
            // Not istioctl's: -c and -i mean something else there.
            ("maille exec -i p -c app -- sh -c x", "maille exec -i p -c app -- sh -c x"),
            (
                "maille -n a -c k exec p -c app -- sh -c x",
                "maille exec p -c app -n a --kubeconfig k -- sh -c x",
            ),
            ("maille --data-dir=d get pods", "maille get pods --data-dir=d"),
        ] {
            assert_eq!(reordered(words(given)), words(taken), "{given}");
        }
    }
}
