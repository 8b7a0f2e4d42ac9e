//! `maille up`: a mesh on this machine, until Ctrl-C.

use std::cell::Cell;
use std::fs::File;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use maille_config::yaml::Document;
use maille_core::ROOT_NAMESPACE;
use maille_kube::{CaFiles, News, check_ca_folder};
use maille_standalone::{DataDir, Prepare, Ready, SupervisorOptions, run_supervisor};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{apply, objects};
use crate::Outcome;
use crate::client::Api;
use crate::dashboard::{Keeper, Place};
use crate::output::{colour, out, write_out};
use crate::progress::Progress;
use crate::{demo, prometheus, signals};

/// Exists while everything that was asked for at the start is applied; names what was not ready in time.
pub(crate) const STARTED: &str = "started";

/// What `--detach` waits for at most.
const DETACH_LIMIT: Duration = Duration::from_secs(180);

/// Exit code when Ctrl-C or SIGTERM comes before all that was asked for is there, as shells give it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// File or folder of objects to apply once the mesh runs; may be given several times.
    #[arg(short = 'f', long = "filename", value_name = "FILE_OR_DIR")]
    files: Vec<PathBuf>,
    /// Run the demo shop, and show who talks to whom.
    #[arg(long)]
    demo: bool,
    /// Run Prometheus too, and have it read the metrics of the mesh; needs the program `prometheus`.
    #[arg(long)]
    with_prometheus: bool,
    /// Stop once all is ready and, with --demo, the table is printed; exit code 0 only if all is as expected.
    #[arg(long, conflicts_with = "detach")]
    check: bool,
    /// Return once all is ready; `maille down` stops the mesh.
    #[arg(long)]
    detach: bool,
    /// Folder of the mesh's state.
    #[arg(long, value_name = "DIR", default_value = crate::DEFAULT_DATA_DIR, env = "MAILLE_DATA_DIR")]
    data_dir: PathBuf,
    /// Folder with a CA that signs for the mesh, in place of one of its own: ca-cert.pem, ca-key.pem and root-cert.pem, with
    /// or without cert-chain.pem and ca-crl.pem; or tls.crt, tls.key and ca.crt. It is followed: when the files are replaced,
    /// the mesh rotates to what they hold, once that is whole.
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,
    /// Keep Pods from reaching anything outside of the mesh. Without it they open TCP connections to wherever this
    /// machine can, its private networks included, as containers do (but never to this machine's own addresses, nor to
    /// loopback, link-local or metadata addresses); UDP is closed to them either way, but for DNS.
    #[arg(long)]
    no_egress: bool,
    /// Ask this resolver for names outside of the cluster, in place of those of /etc/resolv.conf; may be given several
    /// times, and the next is asked when one is silent.
    #[arg(long = "dns-upstream", value_name = "ADDRESS[:PORT]", value_parser = crate::roles::resolver)]
    dns_upstreams: Vec<SocketAddrV4>,
    /// Begun by --detach: leave the terminal.
    #[arg(long, hide = true)]
    detached: bool,
}

pub(crate) fn run(args: UpArgs) -> Result<Outcome> {
    let documents = match read(&args.files)? {
        Ok(documents) => documents,
        Err(problem) => {
            eprint!("{problem}");
            return Ok(Outcome::NotFine);
        }
    };
    ensure!(
        rustix::process::geteuid().is_root(),
        "`maille up` needs root: it gives each workload a network namespace and redirect rules of its own; \
         try it with sudo"
    );
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        ensure!(
            on_path(program),
            "`maille up` needs the program `{program}`: install the Debian package {package}"
        );
    }
    ensure!(
        !args.with_prometheus || on_path(prometheus::PROGRAM),
        "`--with-prometheus` needs the program `prometheus`, which runs as a local process: install the Debian package \
         prometheus (its own service need not run), or leave the flag out"
    );
    if let Some(folder) = &args.ca_dir {
        let has_files = check_ca_folder(folder).map_err(|reason| anyhow!("--ca-dir: {reason}"))?;
        ensure!(
            has_files,
            "--ca-dir: {} holds no CA: put ca-cert.pem, ca-key.pem and root-cert.pem there, or leave the flag out, and the \
             mesh makes a root of its own",
            folder.display()
        );
    }
    if args.detach {
        return detach(&args);
    }
    if args.detached {
        let _ = rustix::process::setsid();
    }
    let outcome = crate::on_runtime(live(&args, &documents));
    let _ = std::fs::remove_file(args.data_dir.join(STARTED));
    outcome
}

/// Reads and checks the files before anything is started.
fn read(files: &[PathBuf]) -> Result<Result<Vec<Document>, String>> {
    if files.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    Ok(apply::check(&objects::read_sources(files)?))
}

/// Runs the supervisor, and beside it what people asked for.
async fn live(args: &UpArgs, documents: &[Document]) -> Result<Outcome> {
    let shutdown = CancellationToken::new();
    let (ready, is_ready) = oneshot::channel();
    let mut supervisor = tokio::spawn(run_supervisor(SupervisorOptions {
        data_dir: args.data_dir.clone(),
        binary: std::env::current_exe().context("cannot tell where this program is")?,
        api_port: 0,
        api_command: None,
        dns_upstreams: args.dns_upstreams.clone(),
        egress: !args.no_egress,
        builtin: true,
        prepare: args.ca_dir.clone().map(take_ca),
        ready: Some(ready),
        shutdown: shutdown.clone(),
    }));
    let up = Cell::new(false);
    let asked = tokio::select! {
        outcome = start(args, documents, is_ready, &up) => outcome,
        () = signals::shutdown() => {
            eprintln!("stopping");
            // Whoever asked for a check, or waits for the start, must not read this end as success.
            Ok(if up.get() { Outcome::Fine } else { Outcome::Exit(INTERRUPTED.into()) })
        }
        ended = &mut supervisor => {
            ended.context("the supervisor broke down")??;
            bail!("the mesh ended by itself; its log is in {}", args.data_dir.display());
        }
    };
    shutdown.cancel();
    supervisor.await.context("the supervisor broke down")??;
    asked
}

/// Waits for the mesh, applies what was asked for, and stays until a signal unless told to stop before.
async fn start(
    args: &UpArgs,
    documents: &[Document],
    is_ready: oneshot::Receiver<Ready>,
    up: &Cell<bool>,
) -> Result<Outcome> {
    let mut progress = Progress::new();
    progress.show("starting the API");
    let Ok(ready) = is_ready.await else {
        // The supervisor ended, and its own error is the one to show.
        return std::future::pending().await;
    };
    progress.done("the API answers");
    // Of a run that was killed.
    let _ = std::fs::remove_file(args.data_dir.join(STARTED));
    let api = Api::from_file(&ready.kubeconfig).await?;
    let _ca_files = args.ca_dir.as_ref().map(|folder| {
        let files = CaFiles::new(api.client().clone(), ROOT_NAMESPACE, folder, tell).alone();
        AbortOnDropHandle::new(tokio::spawn(files.keep()))
    });
    // A mesh without its page is still a mesh.
    let _dashboard = match Keeper::open(&args.data_dir, &ready.kubeconfig) {
        Ok(keeper) => Some(AbortOnDropHandle::new(tokio::spawn(keeper.run()))),
        Err(error) => {
            eprintln!("warning: no dashboard: {error:#}");
            None
        }
    };
    if args.demo {
        demo::apply_shop(&api).await?;
    }
    if args.with_prometheus {
        prometheus::apply_to(&api).await?;
    }
    if !documents.is_empty() {
        if demo::certificates::are_needed(documents) {
            demo::certificates::ensure(&api).await?;
        }
        let lines = apply::apply_all(&api, documents, "default", false).await;
        for line in lines.map_err(|problem| anyhow!("{problem}"))? {
            progress.done(&line);
        }
    }
    let waiting = demo::wait_until_ready(&api, &mut progress).await?;
    let mut outcome = Outcome::Fine;
    if !waiting.is_empty() {
        let limit = demo::READY_LIMIT.as_secs();
        let names = waiting.join(", ");
        out!("not ready within {limit} s: {names}; see `kubectl describe`");
        outcome = Outcome::NotFine;
    }
    if args.demo {
        let rows = demo::watch_pairs(&api, &mut progress).await?;
        out!("");
        write_out(&demo::render(&rows, colour()));
        out!("");
        let wrong = rows.iter().filter(|row| !row.as_expected).count();
        if wrong > 0 {
            out!("{wrong} of {} pairs are not as expected", rows.len());
            outcome = Outcome::NotFine;
        } else {
            out!("All {} pairs are as expected.", rows.len());
        }
    }
    if args.check {
        return Ok(outcome);
    }
    up.set(true);
    // Whole at once: --detach waits for it.
    let unfinished = args.data_dir.join(format!("{STARTED}.new"));
    std::fs::write(&unfinished, waiting.join("\n"))
        .and_then(|()| std::fs::rename(&unfinished, args.data_dir.join(STARTED)))
        .context("cannot write to the data folder")?;
    announce(args, &ready.kubeconfig);
    std::future::pending().await
}

/// The CA of these files is there before the control plane is, which would make one of its own else.
fn take_ca(folder: PathBuf) -> Prepare {
    Prepare(Box::new(move |client| {
        Box::pin(async move {
            let mut files = CaFiles::new(client, ROOT_NAMESPACE, &folder, tell).alone();
            files.begin().await.map_err(|reason| anyhow!("--ca-dir: {reason}"))
        })
    }))
}

fn tell(news: News) {
    match news {
        News::Done(text) => eprintln!("  {text}"),
        News::Wrong(text) => eprintln!("warning: {text}"),
    }
}

fn announce(args: &UpArgs, kubeconfig: &Path) {
    let maille =
        std::env::current_exe().map_or_else(|_| "maille".to_owned(), |path| path.display().to_string());
    out!("");
    out!("The mesh runs. kubeconfig: {}", kubeconfig.display());
    // A log is no place for a key: --detach itself prints it.
    if !args.detached {
        announce_dashboard(&args.data_dir);
    }
    if args.demo {
        out!("");
        write_out(&demo::next_steps(&args.data_dir, &maille));
    }
    if args.with_prometheus {
        out!("");
        write_out(&prometheus::next_steps(&args.data_dir));
    }
    if !args.detached {
        out!("");
        out!("Ctrl-C stops it and leaves nothing behind.");
    }
}

fn announce_dashboard(data_dir: &Path) {
    if let Some(url) = Place::url(data_dir) {
        out!("The dashboard: {url}");
    }
}

/// Starts the same command without this terminal, and waits until it is ready.
fn detach(args: &UpArgs) -> Result<Outcome> {
    let folder = DataDir::create(&args.data_dir)?;
    let dir = args.data_dir.display();
    if let Some(running) = folder.supervisor() {
        bail!(
            "a mesh already runs with the data directory {dir} (process {}); `maille down --data-dir {dir}` ends it",
            running.pid
        );
    }
    // Of a run that was killed; this one has not started yet.
    let _ = std::fs::remove_file(args.data_dir.join(STARTED));
    let log_path = args.data_dir.join("up.log");
    let log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot tell where this program is")?);
    command.args(["up", "--detached", "--data-dir"]).arg(&args.data_dir);
    if args.demo {
        command.arg("--demo");
    }
    if args.with_prometheus {
        command.arg("--with-prometheus");
    }
    if let Some(folder) = &args.ca_dir {
        command.arg("--ca-dir").arg(folder);
    }
    if args.no_egress {
        command.arg("--no-egress");
    }
    command.args(args.dns_upstreams.iter().map(|resolver| format!("--dns-upstream={resolver}")));
    for file in &args.files {
        command.arg("-f").arg(file);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().context("cannot start the mesh")?;
    let mut progress = Progress::new();
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the mesh did not start ({status}):\n{}", log.trim_end());
        }
        if let Ok(waiting) = std::fs::read_to_string(args.data_dir.join(STARTED)) {
            progress.done(if waiting.is_empty() { "the mesh is ready" } else { "the mesh runs" });
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            let printed: Vec<&str> = log.lines().skip_while(|line| line.starts_with("  ")).collect();
            out!("{}", printed.join("\n").trim());
            out!("");
            announce_dashboard(&args.data_dir);
            out!("");
            out!("{} stops it.", down_command(&args.data_dir));
            return Ok(if waiting.is_empty() { Outcome::Fine } else { Outcome::NotFine });
        }
        ensure!(
            started.elapsed() < DETACH_LIMIT,
            "the mesh is not ready after {} s; it goes on starting, see {} and `maille status --data-dir {dir}`",
            DETACH_LIMIT.as_secs(),
            log_path.display()
        );
        progress.show("starting");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// As people paste it.
fn down_command(data_dir: &Path) -> String {
    match data_dir == Path::new(crate::DEFAULT_DATA_DIR) {
        true => "`maille down`".to_owned(),
        false => format!("`maille down --data-dir {}`", data_dir.display()),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}
