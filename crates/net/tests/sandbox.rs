//! What a container can and cannot do, tried by real programs inside one.

#![allow(clippy::unwrap_used, reason = "a failed assumption fails the test")]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use maille_net::NetNs;
use maille_net::sandbox::{
    Capabilities, ExecSpec, FileTree, Joined, Order, Process, Report, SandboxSpec, Start, Volume,
    main as sandbox, receive_files, send_files,
};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|arg| arg == "sandbox") {
        return sandbox(args);
    }
    common::run(&[
        ("a_program_runs_and_its_exit_code_comes_back", exit_code),
        ("a_missing_program_is_named", missing_program),
        ("the_user_is_unprivileged_for_good", unprivileged),
        ("a_program_may_open_its_own_output_by_name", own_output),
        ("only_named_files_are_there", files),
        ("volumes_are_mounted_even_where_the_host_has_no_such_directory", volumes),
        ("links_planted_in_volumes_lead_nowhere_on_the_host", planted_links),
        ("open_files_of_whoever_starts_it_stay_outside", descriptors),
        ("other_processes_are_out_of_sight", processes),
        ("sigterm_ends_a_program_that_does_not_handle_it", sigterm_default),
        ("sigterm_reaches_a_program_that_handles_it", sigterm_handled),
        ("the_container_dies_with_its_supervisor", orphan),
        ("a_command_joins_a_running_container", join),
        ("a_command_that_does_not_exist_is_named", join_missing),
        ("a_command_gets_a_terminal_of_its_own", join_terminal),
        ("a_command_ends_with_its_children_when_nobody_wants_it", join_dropped),
        ("only_intercept_may_keep_a_capability", capability),
    ])
}

struct Lab {
    ns: NetNs,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        for (path, text) in [
            ("etc/resolv.conf", "nameserver 10.96.0.10\n"),
            ("etc/hosts", "127.0.0.1 localhost\n"),
            ("etc/hostname", "box\n"),
            ("secret", "top secret"),
            ("volume/file", "in the volume"),
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::create_dir(dir.path().join("stage")).unwrap();
        Self { ns: NetNs::create(format!("maille-sbx-{name}-{}", std::process::id())).unwrap(), dir }
    }

    fn spec(&self, command: &[&str]) -> SandboxSpec {
        let path = |p: &str| self.dir.path().join(p);
        SandboxSpec {
            start: Start::New {
                network: self.ns.path(),
                hostname: "box".to_owned(),
                tree: FileTree {
                    staging: path("stage"),
                    shown: vec![],
                    hidden: vec![self.dir.path().to_owned()],
                    etc: path("etc"),
                    volumes: vec![],
                },
            },
            process: Process {
                command: command.iter().map(|&s| s.to_owned()).collect(),
                env: vec![("ANSWER".to_owned(), "42".to_owned())],
                directory: None,
                uid: 100_007,
                gid: 100_007,
                groups: vec![],
                capabilities: Capabilities::None,
            },
        }
    }

    /// Runs a shell script in a container to its end: exit code and output.
    fn shell(&self, script: &str) -> (i32, String) {
        Running::start(&self.spec(&["sh", "-c", script])).finish()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.ns.kill_all().unwrap();
        self.ns.delete().unwrap();
    }
}

struct Running {
    child: Child,
    socket: BufReader<UnixStream>,
}

impl Running {
    fn start(spec: &SandboxSpec) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new("/proc/self/exe")
            .arg("sandbox")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = serde_json::to_vec(spec).unwrap();
        line.push(b'\n');
        (&ours).write_all(&line).unwrap();
        Self { child, socket: BufReader::new(ours) }
    }

    fn report(&mut self) -> Report {
        let mut line = String::new();
        self.socket.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    fn order(&mut self, order: Order) {
        let mut line = serde_json::to_vec(&order).unwrap();
        line.push(b'\n');
        self.socket.get_mut().write_all(&line).unwrap();
    }

    fn wait_line(&mut self) -> String {
        let mut byte = [0];
        let mut line = Vec::new();
        let stdout = self.child.stdout.as_mut().unwrap();
        while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn finish(mut self) -> (i32, String) {
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        let code = loop {
            match self.report() {
                Report::Started { .. } => {}
                Report::Failed { message, code } => {
                    output.push_str(&message);
                    break code;
                }
                Report::Exited { code, .. } => break code,
            }
        };
        self.child.wait().unwrap();
        (code, output)
    }
}

fn exit_code() {
    let lab = Lab::new("exit");
    assert_eq!(lab.shell("echo $ANSWER; hostname; pwd; exit 3"), (3, "42\nbox\n/\n".to_owned()));
}

fn missing_program() {
    let lab = Lab::new("missing");
    let (code, message) = Running::start(&lab.spec(&["no-such-program"])).finish();
    assert_eq!(code, 127);
    assert!(message.contains("\"no-such-program\": executable file not found in $PATH"), "{message}");
    assert!(message.contains("hostPath"), "{message}");
    let (code, message) = Running::start(&lab.spec(&["/etc/passwd"])).finish();
    assert_eq!(code, 126, "{message}");
}

fn unprivileged() {
    let lab = Lab::new("user");
    let (_, status) = lab.shell("cat /proc/self/status; id -u; id -G");
    for capability in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{capability}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.ends_with("100007\n100007\n"), "{status}");
    let (_, output) = lab.shell(
        "setpriv --reuid 1337 true 2>&1 || echo no1; setpriv --reuid 0 true 2>&1 || echo no2; \
         su -c true 2>&1 || echo no3; unshare -m true 2>&1 || echo no4; mount -t tmpfs t /tmp 2>&1 || echo no5; \
         unshare -U -r mount -o remount,rw /usr 2>&1 || echo no6; touch /usr/x /x /etc/x 2>&1 || echo no7",
    );
    for attempt in ["no1", "no2", "no3", "no4", "no5", "no6", "no7"] {
        assert!(output.contains(attempt), "{attempt}: {output}");
    }
}

fn files() {
    let lab = Lab::new("files");
    let (_, listing) = lab.shell("ls -a /; ls -a /root /home 2>&1; echo; ls /run /var");
    for hidden in ["root", "home", "work", ".old", "mnt", "boot"] {
        assert!(
            !listing.split("ls:").next().unwrap().lines().any(|line| line == hidden),
            "{hidden}: {listing}"
        );
    }
    let secret = lab.dir.path().join("secret");
    let (code, output) = lab.shell(&format!("cat {}", secret.display()));
    assert_ne!(code, 0, "{output}");
    // A Pod may choose its groups; those of the host's files must not help it.
    let mut spec = lab.spec(&[
        "sh",
        "-c",
        "wc -c < /etc/shadow; cat /etc/resolv.conf /etc/hosts; touch /tmp/a /dev/shm/b",
    ]);
    spec.process.gid = 42;
    let (code, output) = Running::start(&spec).finish();
    assert_eq!((code, output.as_str()), (0, "0\nnameserver 10.96.0.10\n127.0.0.1 localhost\n"));
}

fn volumes() {
    let lab = Lab::new("volumes");
    let targets =
        ["/data", "/etc/app/conf", "/usr/share/deep/er", "/var/run/secrets/x", "/etc/hostname.d/file"];
    let mut spec = lab.spec(&["sh", "-c", ""]);
    let Start::New { tree, .. } = &mut spec.start else { unreachable!() };
    for target in targets {
        let file = target.ends_with("file");
        tree.volumes.push(Volume {
            source: lab.dir.path().join(if file { "volume/file" } else { "volume" }),
            target: target.into(),
            read_only: target != "/data",
        });
    }
    std::fs::set_permissions(lab.dir.path().join("volume"), PermissionsExt::from_mode(0o777)).unwrap();
    spec.process.command[2] = "cat /data/file /etc/app/conf/file /usr/share/deep/er/file /var/run/secrets/x/file \
         /etc/hostname.d/file; echo; ls /etc/passwd /usr/share/doc >/dev/null && touch /data/new; touch /etc/app/conf/new 2>&1"
        .to_owned();
    let (code, output) = Running::start(&spec).finish();
    assert_ne!(code, 0, "the read-only volume refuses");
    assert_eq!(output.matches("in the volume").count(), 5, "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(lab.dir.path().join("volume/new").exists());
    assert!(
        !Path::new("/usr/share/deep").exists() && !Path::new("/etc/app").exists(),
        "no trace on the host"
    );
    // A file system's own mount table does not keep the volume either.
    assert!(
        !std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(lab.dir.path().to_str().unwrap())
    );
}

fn planted_links() {
    let lab = Lab::new("links");
    let host = lab.dir.path();
    std::fs::create_dir(host.join("trap")).unwrap();
    // As a program could write them that knows how the tree is built, or just where the host keeps things.
    for (name, to) in [
        ("old", format!("/.old{}/secret", host.display())),
        ("plain", host.join("secret").display().to_string()),
        ("up", "../secret".to_owned()),
    ] {
        std::os::unix::fs::symlink(to, host.join("volume").join(name)).unwrap();
        let mut spec = lab.spec(&["cat", "/stolen"]);
        let Start::New { tree, .. } = &mut spec.start else { unreachable!() };
        tree.volumes.push(Volume {
            source: host.join("volume").join(name),
            target: "/stolen".into(),
            read_only: false,
        });
        let (code, message) = Running::start(&spec).finish();
        assert!(code == 125 && message.contains("symbolic link"), "{name}: {code} {message}");
    }
    // A volume inside another one: its place is made by root, so it must not be made behind a link.
    let link = host.join("volume/inner");
    std::os::unix::fs::symlink(format!("/.old{}/trap", host.display()), link).unwrap();
    let mut spec = lab.spec(&["true"]);
    let Start::New { tree, .. } = &mut spec.start else { unreachable!() };
    for target in ["/data", "/data/inner/made"] {
        tree.volumes.push(Volume { source: host.join("volume"), target: target.into(), read_only: false });
    }
    Running::start(&spec).finish();
    assert_eq!(std::fs::read_dir(host.join("trap")).unwrap().count(), 0, "nothing was made on the host");
}

fn descriptors() {
    let lab = Lab::new("fds");
    // Open in every process started from here on, as a descriptor of the shell that runs `maille` would be.
    let directory = std::fs::File::open(lab.dir.path()).unwrap();
    let inherited = rustix::io::dup(&directory).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&inherited);
    let script =
        format!("test ! -e /proc/$$/fd/{number} && ls /proc/$$/fd | grep -vxE '0|1|2|10'; echo done");
    let (_, output) = lab.shell(&script);
    assert_eq!(output, "done\n");
    let mut running = Running::start(&lab.spec(&["sleep", "600"]));
    let Report::Started { process } = running.report() else { panic!("not started") };
    let mut spec =
        lab.spec(&["sh", "-c", &format!("test ! -e /proc/$$/fd/{number} && test ! -e /proc/$$/fd/3")]);
    spec.start = Start::Join(Joined { container: process });
    assert_eq!(exec(&spec), (0, String::new()));
    running.order(Order::Kill);
    running.child.wait().unwrap();
}

fn own_output() {
    let lab = Lab::new("stdout");
    assert_eq!(lab.shell("echo to itself > /dev/stdout"), (0, "to itself\n".to_owned()));
    let (mut running, spec) = sleeping(&lab, &["sh", "-c", "echo joined > /dev/stdout"]);
    assert_eq!(exec(&spec), (0, "joined\n".to_owned()));
    running.order(Order::Kill);
    running.child.wait().unwrap();
}

fn processes() {
    let lab = Lab::new("procs");
    let (_, output) = lab
        .shell("ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm; kill -9 2>&1 -- -1; ls /proc/1/root | head -1");
    assert!(output.starts_with("3\nsh\n") || output.starts_with("2\nsh\n"), "{output}");
}

fn sigterm_default() {
    let lab = Lab::new("term");
    let mut running = Running::start(&lab.spec(&["sleep", "600"]));
    assert!(matches!(running.report(), Report::Started { .. }));
    running.order(Order::Terminate);
    assert!(matches!(running.report(), Report::Exited { signal: Some(_), .. }));
    running.child.wait().unwrap();
}

fn sigterm_handled() {
    let lab = Lab::new("trap");
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = Running::start(&lab.spec(&["sh", "-c", script]));
    assert!(matches!(running.report(), Report::Started { .. }));
    assert_eq!(running.wait_line(), "ready");
    running.order(Order::Terminate);
    assert_eq!(running.report(), Report::Exited { code: 7, signal: None });
    running.child.wait().unwrap();
}

fn orphan() {
    let lab = Lab::new("orphan");
    let mut running = Running::start(&lab.spec(&["sleep", "600"]));
    let Report::Started { process } = running.report() else { panic!("not started") };
    assert!(process.is_alive());
    let Running { mut child, socket } = running;
    drop(socket);
    child.wait().unwrap();
    assert!(!process.is_alive());
}

fn join() {
    let lab = Lab::new("join");
    let mut running =
        Running::start(&lab.spec(&["sh", "-c", "echo here > /tmp/mark; echo ready; sleep 600"]));
    let Report::Started { process } = running.report() else { panic!("not started") };
    assert_eq!(running.wait_line(), "ready");
    let mut spec = lab.spec(&[
        "sh",
        "-c",
        "test $(cat /tmp/mark) = here && test $(cat /proc/1/comm) = sh && test $(id -u) = 100007 && exit 9",
    ]);
    spec.start = Start::Join(Joined { container: process });
    assert_eq!(exec(&spec), (9, String::new()));
    // A session of its own, so that no terminal of the host is its controlling one.
    spec.process.command =
        ["sh", "-c", "set -- $$ $(cat /proc/$$/stat); test $1 = $7"].map(str::to_owned).to_vec();
    assert_eq!(exec(&spec), (0, String::new()));
    spec.process.command =
        vec!["grep".into(), "-q".into(), "NoNewPrivs:.1".into(), "/proc/self/status".into()];
    let (code, _) = Running::start(&spec).finish();
    assert_eq!(code, 0, "through the monitor too, as probes do");
    running.order(Order::Kill);
    assert_eq!(running.report(), Report::Exited { code: 137, signal: Some(9) });
    running.child.wait().unwrap();
    assert!(exec(&spec).1.contains("not running"));
}

/// One more process in a running container.
struct Joining {
    child: Child,
    socket: UnixStream,
}

impl Joining {
    /// With these streams, or with a terminal that comes back.
    fn start(spec: &SandboxSpec, streams: &[OwnedFd]) -> (Self, Report, Option<OwnedFd>) {
        let Start::Join(container) = spec.start.clone() else { panic!("nothing to join") };
        let spec = ExecSpec { container, process: spec.process.clone(), terminal: streams.is_empty() };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new("/proc/self/exe")
            .args(["sandbox", "exec"])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let mut line = serde_json::to_vec(&spec).unwrap();
        line.push(b'\n');
        let streams: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        let sent = send_files(&ours, &line, &streams).unwrap();
        (&ours).write_all(&line[sent..]).unwrap();
        let mut joining = Self { child, socket: ours };
        let (report, terminal) = joining.report();
        (joining, report, terminal)
    }

    fn report(&mut self) -> (Report, Option<OwnedFd>) {
        let (mut line, mut files) = (Vec::new(), Vec::new());
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            assert_eq!(receive_files(&self.socket, &mut byte, &mut files).unwrap(), 1, "a report");
            line.extend(byte);
        }
        (serde_json::from_slice(&line).unwrap(), files.pop())
    }
}

/// Runs a command in a running container to its end: exit code, and its output or why it did not start.
fn exec(spec: &SandboxSpec) -> (i32, String) {
    let (output, theirs) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (mut joining, first, _) = Joining::start(
        spec,
        &[null(), theirs.into(), std::io::stderr().as_fd().try_clone_to_owned().unwrap()],
    );
    let text = std::io::read_to_string(output).unwrap();
    let result = match first {
        Report::Failed { message, code } => (code, message),
        _ => match joining.report().0 {
            Report::Exited { code, .. } => (code, text),
            other => panic!("{other:?}"),
        },
    };
    joining.child.wait().unwrap();
    result
}

/// A container that sleeps, and a command that is to join it.
fn sleeping(lab: &Lab, command: &[&str]) -> (Running, SandboxSpec) {
    let mut running = Running::start(&lab.spec(&["sleep", "600"]));
    let Report::Started { process } = running.report() else { panic!("not started") };
    let mut spec = lab.spec(command);
    spec.start = Start::Join(Joined { container: process });
    (running, spec)
}

fn join_missing() {
    let lab = Lab::new("missing");
    let (mut running, spec) = sleeping(&lab, &["no-such-program"]);
    let (code, message) = exec(&spec);
    assert_eq!(code, 127);
    assert!(message.contains("\"no-such-program\": executable file not found in $PATH"), "{message}");
    running.order(Order::Kill);
    running.child.wait().unwrap();
}

fn join_terminal() {
    let lab = Lab::new("tty");
    let script = "tty; test -t 0 && test -t 1 && test -t 2 && stty size && echo into > /dev/tty; read line; \
                  echo got $line; trap 'echo interrupted; exit 5' INT; echo again; while :; do sleep 0.05; done";
    let (mut running, spec) = sleeping(&lab, &["sh", "-c", script]);
    let (mut joining, first, terminal) = Joining::start(&spec, &[]);
    assert!(matches!(first, Report::Started { .. }), "{first:?}");
    let terminal = std::fs::File::from(terminal.unwrap());
    let mut lines = BufReader::new(&terminal);
    let mut line = || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    assert_eq!(line(), "/dev/pts/0", "it has a name inside");
    assert_eq!(line(), "0 0");
    assert_eq!(line(), "into", "and is the controlling one");
    (&terminal).write_all(b"a line\n").unwrap();
    assert_eq!([line(), line(), line()], ["a line", "got a line", "again"]);
    (&terminal).write_all(b"\x03").unwrap();
    assert!(line().ends_with("interrupted"));
    assert!(matches!(joining.report().0, Report::Exited { code: 5, .. }));
    joining.child.wait().unwrap();
    running.order(Order::Kill);
    running.child.wait().unwrap();
}

fn join_dropped() {
    let lab = Lab::new("dropped");
    let (mut running, spec) = sleeping(&lab, &["sh", "-c", "sleep 599 & echo started; wait"]);
    let (mut output, theirs) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (joining, first, _) = Joining::start(&spec, &[null(), theirs.into(), null()]);
    assert!(matches!(first, Report::Started { .. }), "{first:?}");
    let mut word = [0; 8];
    output.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"started\n");
    let Joining { mut child, socket } = joining;
    drop(socket);
    child.wait().unwrap();
    // The child of the shell had the pipe too: its end says that it is gone.
    assert_eq!(output.read(&mut word).unwrap(), 0);
    running.order(Order::Kill);
    running.child.wait().unwrap();
}

fn capability() {
    let lab = Lab::new("cap");
    let mut spec = lab.spec(&["sh", "-c", "true"]);
    spec.process.capabilities = Capabilities::Intercept;
    let (code, message) = Running::start(&spec).finish();
    assert_eq!(code, 125);
    assert!(message.contains("CAP_NET_ADMIN"), "{message}");
}
