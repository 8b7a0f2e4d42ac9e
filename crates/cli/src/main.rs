//! The `maille` binary: arguments, wiring, commands, tables, exit codes.

#![forbid(unsafe_code)]

mod called;
mod client;
mod commands;
mod dashboard;
mod demo;
mod output;
mod pods;
mod progress;
mod prometheus;
mod roles;
mod shop;
mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Small resident memory and no fragmentation over weeks matter more to a sidecar than the
/// last nanosecond; mimalloc has both (reference crates.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Where a standalone mesh keeps its state, unless `--data-dir` says otherwise.
const DEFAULT_DATA_DIR: &str = "/var/lib/maille-mesh";

/// A zero-trust service mesh in one binary.
#[derive(Debug, Parser)]
#[command(name = "maille", version, max_term_width = 110, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    People(Box<People>),
    #[command(flatten)]
    Role(Role),
}

/// What people call.
#[derive(Debug, Subcommand)]
enum People {
    /// Start a mesh on this machine
    Up(commands::up::UpArgs),
    /// Stop the mesh on this machine, and leave nothing behind
    Down(commands::down::DownArgs),
    /// Show what runs, and whether it is ready
    Status(commands::status::StatusArgs),
    /// Create or change the objects of files: all of them, or none
    Apply(commands::apply::ApplyArgs),
    /// Show objects
    Get(commands::get::GetArgs),
    /// Delete objects
    Delete(commands::delete::DeleteArgs),
    /// Run a command in a container
    Exec(commands::exec::ExecArgs),
    /// Print what a container wrote
    Logs(commands::logs::LogsArgs),
    /// Show who talked to whom, and what was refused
    Flows(commands::flows::FlowsArgs),
    /// Show who talks to whom as a page in the browser
    Dashboard(commands::dashboard::DashboardArgs),
    /// Find mistakes in the configuration, in files and in the mesh
    Analyze(commands::analyze::AnalyzeArgs),
    /// Check files of objects
    Validate(commands::validate::ValidateArgs),
    /// Ask what policy decides
    Authz(commands::authz::AuthzArgs),
    /// Show what a proxy lives by
    #[command(visible_alias = "pc")]
    ProxyConfig(commands::proxy_config::ProxyConfigArgs),
    /// Show which proxies are connected, and whether they are up to date
    #[command(visible_alias = "ps")]
    ProxyStatus(commands::proxy_status::ProxyStatusArgs),
    /// Commands that istioctl has under `x`: describe, authz check
    #[command(name = "experimental", visible_aliases = ["x", "exp"])]
    Experimental(commands::experimental::ExperimentalArgs),
    /// Show and replace the authority, its roots and what it issues, and revoke
    Ca(commands::ca::CaArgs),
    /// Find what ends soon, and fail before it does
    Check(commands::check::CheckArgs),
    /// Print the version
    Version(commands::version::VersionArgs),
}

/// What the supervisor or Kubernetes starts.
#[derive(Debug, Subcommand)]
enum Role {
    /// Role: the control plane
    ControlPlane(roles::ControlPlaneArgs),
    /// Role: the sidecar in front of one workload
    Proxy(roles::ProxyArgs),
    /// Role: install a Pod's redirect rules
    Intercept(roles::InterceptArgs),
    /// Role: a service of the demo shop
    Shop(shop::ShopArgs),
    #[command(hide = true)]
    ApiServer(roles::ApiServerArgs),
    #[command(hide = true)]
    Egress(roles::EgressArgs),
    #[command(hide = true)]
    DashboardServer(dashboard::DashboardServerArgs),
    #[command(hide = true)]
    Sandbox(roles::SandboxArgs),
}

/// What a command found (design, "The public contract").
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Exit code 0.
    Fine,
    /// The thing asked about is not fine: exit code 1.
    NotFine,
    /// What an executed command ended with.
    Exit(ExitCode),
}

fn main() -> ExitCode {
    let cli = match called::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let outcome = match cli.command {
        Command::People(command) => run(*command),
        Command::Role(role) => play(role),
    };
    match outcome {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::NotFine) => ExitCode::from(1),
        Ok(Outcome::Exit(code)) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if called::as_istioctl() => {
            eprintln!("Error: {error:#}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("maille: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: People) -> anyhow::Result<Outcome> {
    use commands::{
        analyze, apply, authz, ca, check, dashboard, delete, down, exec, experimental, flows, get, logs,
    };
    use commands::{proxy_config, proxy_status, status, up, validate, version};
    choose_crypto();
    match command {
        People::Up(args) => up::run(args),
        People::Down(args) => down::run(&args),
        People::Status(args) => on_runtime(status::run(args)),
        People::Apply(args) => on_runtime(apply::run(args)),
        People::Get(args) => on_runtime(get::run(args)),
        People::Delete(args) => on_runtime(delete::run(args)),
        People::Exec(args) => on_runtime(exec::run(args)),
        People::Logs(args) => on_runtime(logs::run(args)),
        People::Flows(args) => on_runtime(flows::run(args)),
        People::Dashboard(args) => on_runtime(dashboard::run(args)),
        People::Analyze(args) => on_runtime(analyze::run(args)),
        People::Validate(args) => on_runtime(validate::run(args)),
        People::Authz(args) => on_runtime(authz::run(args)),
        People::ProxyConfig(args) => on_runtime(proxy_config::run(args)),
        People::ProxyStatus(args) => on_runtime(proxy_status::run(args)),
        People::Experimental(args) => on_runtime(experimental::run(args)),
        People::Check(args) => on_runtime(check::run(args)),
        People::Ca(args) => on_runtime(ca::run(args)),
        People::Version(args) => on_runtime(version::run(args)),
    }
}

fn play(role: Role) -> anyhow::Result<Outcome> {
    match role {
        // Becomes a container: nothing of this process may be set up before.
        Role::Sandbox(args) => return Ok(Outcome::Exit(roles::sandbox(args))),
        Role::Intercept(args) => roles::intercept(args),
        Role::Shop(args) => shop::run(args),
        Role::ControlPlane(args) => roles::control_plane(args),
        Role::Proxy(args) => roles::proxy(args),
        Role::ApiServer(args) => roles::api_server(args),
        Role::Egress(args) => roles::egress(args),
        Role::DashboardServer(args) => dashboard::serve(args),
    }
    .map(|()| Outcome::Fine)
}

/// One provider, chosen here, for what asks the process and not us (the Kubernetes client).
pub(crate) fn choose_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs a command of people: one thread is enough.
fn on_runtime<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// A reader that has seen enough, e.g. `maille get pods | head`, is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
