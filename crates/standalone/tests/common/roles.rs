//! The roles of the `maille` binary that a supervisor starts, played by the test binary.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use maille_standalone::address::{API_PORT, DNS_PORT, NODE_ADDRESS};
use maille_standalone::dns::DnsOptions;
use maille_standalone::exec::Streams;
use tokio::io::AsyncReadExt as _;

/// Plays the role the arguments name, if they name one.
pub(crate) fn play() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next()?.into_string().ok()?;
    let rest: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    match role.as_str() {
        "sandbox" => Some(maille_net::sandbox::main(rest.into_iter().map(Into::into))),
        "api-server" => Some(api_server(&rest)),
        "egress" => Some(egress(&rest)),
        "exec" => Some(exec(&rest)),
        "serve" => Some(serve(&rest)),
        "fetch" => Some(fetch(&rest)),
        _ => None,
    }
}

fn value(args: &[String], flag: &str) -> String {
    let at = args.iter().position(|arg| arg == flag).expect("the flag");
    args[at + 1].clone()
}

fn api_server(args: &[String]) -> ExitCode {
    maille_net::process::die_with_parent().unwrap();
    let data_dir = PathBuf::from(value(args, "--data-dir"));
    let port: u16 = value(args, "--port").parse().unwrap();
    let local = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    maille_net::NetNs::named(value(args, "--node-namespace")).enter().unwrap();
    let node = TcpListener::bind((NODE_ADDRESS, API_PORT)).unwrap();
    let udp = UdpSocket::bind((NODE_ADDRESS, DNS_PORT)).unwrap();
    let tcp = TcpListener::bind((NODE_ADDRESS, DNS_PORT)).unwrap();
    for listener in [&local, &node] {
        listener.set_nonblocking(true).unwrap();
    }
    let mut options = maille_apiserver::Options::new(&data_dir, vec![local, node]);
    options.advertise = SocketAddr::from((NODE_ADDRESS, API_PORT));
    options.certificate_addresses = vec![NODE_ADDRESS.into()];
    options.binary = std::env::current_exe().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (ready, told) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            told.await.expect("ready");
            let read = kube::config::Kubeconfig::read_from(data_dir.join("kubeconfig")).unwrap();
            let mut config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
            config.cluster_url = format!("https://{NODE_ADDRESS}:{API_PORT}").parse().unwrap();
            let client = kube::Client::try_from(config).unwrap();
            maille_standalone::dns::serve(DnsOptions { udp, tcp, upstream: None }, client).await.unwrap();
        });
        tokio::select! {
            result = maille_apiserver::serve(options, ready) => result.unwrap(),
            _ = async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap().recv().await } => {}
        }
    });
    ExitCode::SUCCESS
}

fn egress(args: &[String]) -> ExitCode {
    match maille_standalone::egress::run(&value(args, "--node-namespace")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What `maille exec` does: a process of its own, because the command gets its standard streams.
fn exec(args: &[String]) -> ExitCode {
    let spec: serde_json::Value = serde_json::from_str(&args[0]).unwrap();
    let text = |key: &str| spec[key].as_str().unwrap().to_owned();
    let command: Vec<String> = serde_json::from_value(spec["command"].clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let code = runtime.block_on(async {
        let containers = maille_standalone::exec::Containers::open(text("dir").as_ref())?;
        let execution = containers.exec(&text("uid"), &text("container"), command, false, false).await?;
        let Streams::Pipes { mut stdout, mut stderr, .. } = execution.streams else {
            unreachable!("no terminal was asked for")
        };
        let (mut out, mut err) = (String::new(), String::new());
        tokio::try_join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err))?;
        print!("{out}");
        eprint!("{err}");
        Ok::<_, anyhow::Error>(execution.command.wait().await)
    });
    match code {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(255)),
        Err(error) => {
            println!("{error:#}");
            ExitCode::from(255)
        }
    }
}

/// An HTTP server of one answer: `serve PORT TEXT`.
fn serve(args: &[String]) -> ExitCode {
    let listener = TcpListener::bind(("0.0.0.0", args[0].parse::<u16>().unwrap())).unwrap();
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut buffer = [0; 2048];
        let _ = stream.read(&mut buffer);
        let text = &args[1];
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    ExitCode::SUCCESS
}

/// Prints what an address answers: `fetch HOST:PORT`.
fn fetch(args: &[String]) -> ExitCode {
    let result = TcpStream::connect(args[0].as_str()).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    match result {
        Ok(text) => {
            println!("{}", text.rsplit("\r\n").next().unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}
