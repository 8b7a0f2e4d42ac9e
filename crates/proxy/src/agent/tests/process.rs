//! A sidecar as a process of its own: start, serve, drain, restart. The test binary starts itself again as the sidecar.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::control::SERVER_NAME;
use super::{Lab, eventually, get, loopback, request};
use crate::agent::options::{ListenAddresses, ProxyOptions};

const DIRECTORY: &str = "MAILLE_TEST_SIDECAR_DIRECTORY";
const ADDRESSES: &str = "MAILLE_TEST_SIDECAR_ADDRESSES";

/// The sidecar itself, when this binary was started as one; otherwise there is nothing to do.
#[test]
fn sidecar_process() {
    let (Ok(directory), Ok(addresses)) = (std::env::var(DIRECTORY), std::env::var(ADDRESSES)) else { return };
    let directory = PathBuf::from(directory);
    let addresses: Vec<SocketAddr> = addresses.split(',').map(|a| a.parse().expect("an address")).collect();
    let [inbound, outbound, status, readiness, metrics, admin] = addresses[..] else {
        panic!("six addresses")
    };
    let options = ProxyOptions::from_env(|name| std::env::var(name).ok()).expect("environment");
    let options = ProxyOptions {
        server_name: Some(SERVER_NAME.to_owned()),
        root_file: directory.join("root-cert.pem"),
        token_file: directory.join("token"),
        state_dir: directory,
        listen: ListenAddresses { inbound, outbound, status, readiness, metrics, admin },
        ..options
    };
    crate::run(options).expect("a sidecar that ends in order");
}

struct Sidecar {
    process: Child,
    addresses: Vec<SocketAddr>,
}

impl Sidecar {
    fn start(lab: &Lab) -> Self {
        // Ports that were free a moment ago; the sidecar must know them beforehand.
        let sockets: Vec<_> =
            (0..6).map(|_| std::net::TcpListener::bind(loopback()).expect("a port")).collect();
        let addresses: Vec<_> = sockets.iter().map(|s| s.local_addr().expect("an address")).collect();
        drop(sockets);
        Self::start_at(lab, addresses, "first")
    }

    /// One that is told more by its environment.
    fn start_with(lab: &Lab, told: &[(&str, &str)]) -> Self {
        let mut first = Self::start(lab);
        let _ = first.process.kill();
        let _ = first.process.wait();
        Self::launch(lab, first.addresses.clone(), "first", told)
    }

    /// Beside another one, or after it.
    fn start_at(lab: &Lab, addresses: Vec<SocketAddr>, life: &str) -> Self {
        Self::launch(lab, addresses, life, &[])
    }

    fn launch(lab: &Lab, addresses: Vec<SocketAddr>, life: &str, told: &[(&str, &str)]) -> Self {
        let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let process = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "agent::tests::process::sidecar_process", "--nocapture"])
            .env(DIRECTORY, lab.file(""))
            .env(ADDRESSES, list)
            .env("POD_NAME", "cart-1")
            .env("POD_NAMESPACE", "shop")
            .env("SERVICE_ACCOUNT", "cart")
            .env("INSTANCE_IP", "127.0.0.1")
            .env("DISCOVERY_ADDRESS", lab.address.to_string())
            .env("MAILLE_LIFE", life)
            .env("TERMINATION_DRAIN_DURATION_SECONDS", "1")
            .envs(told.iter().copied())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        Self { process, addresses }
    }

    fn is_accepting(&self, index: usize) -> bool {
        std::net::TcpStream::connect(self.addresses[index]).is_ok()
    }

    async fn ready(&self) {
        eventually("the status port answers", || self.is_accepting(3)).await;
        for _ in 0..500 {
            if get(self.addresses[3], "/healthz/ready").await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never ready: {}", get(self.addresses[3], "/healthz/ready").await.1);
    }

    /// Which process answers about readiness, if it says that it is ready.
    fn life(&self) -> Option<String> {
        let mut stream = std::net::TcpStream::connect(self.addresses[3]).ok()?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let life = answer.lines().find_map(|line| line.strip_prefix("x-maille-life: "))?;
        answer.starts_with("HTTP/1.1 200").then(|| life.to_owned())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, signal).expect("signalled");
    }

    async fn ended(&mut self) -> bool {
        let mut success = false;
        let process = &mut self.process;
        eventually("the sidecar ends", || match process.try_wait().expect("waited") {
            Some(status) => {
                success = status.success();
                true
            }
            None => false,
        })
        .await;
        success
    }

    /// A line of `/proc/<pid>/status`, in kB.
    fn memory_kb(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_sidecar_serves_drains_and_ends_in_order() {
    let lab = Lab::new().await;
    let mut sidecar = Sidecar::start(&lab);
    sidecar.ready().await;
    assert!(sidecar.is_accepting(0) && sidecar.is_accepting(1), "both ways are open");
    for name in ["VmRSS", "RssAnon", "RssFile"] {
        println!("idle sidecar (this build, with the test harness): {name} {:?} kB", sidecar.memory_kb(name));
    }
    sidecar.signal(Signal::TERM);
    eventually("no new inbound connections", || !sidecar.is_accepting(0)).await;
    assert_eq!(get(sidecar.addresses[3], "/healthz/ready").await.0, 503);
    assert!(sidecar.is_accepting(1), "outbound calls still work while draining");
    assert!(sidecar.ended().await, "it ends without an error");
}

#[tokio::test]
async fn a_sidecar_told_so_ends_when_nothing_is_open_any_more() {
    let lab = Lab::new().await;
    let mut sidecar = Sidecar::start_with(
        &lab,
        &[
            // Far beyond the patience of this test.
            ("TERMINATION_DRAIN_DURATION_SECONDS", "600"),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
            ("MINIMUM_DRAIN_DURATION", "10ms"),
        ],
    );
    sidecar.ready().await;
    sidecar.signal(Signal::TERM);
    assert!(sidecar.ended().await, "nothing is open");
}

#[tokio::test]
async fn a_sidecar_that_has_drained_already_ends_with_its_last_connection() {
    let lab = Lab::new().await;
    let mut sidecar = Sidecar::start_with(&lab, &[("TERMINATION_DRAIN_DURATION_SECONDS", "600")]);
    sidecar.ready().await;
    assert_eq!(request(sidecar.addresses[2], "POST", "/drain", "localhost").await.0, 200);
    eventually("it is not ready any more", || sidecar.life().is_none()).await;
    sidecar.signal(Signal::TERM);
    assert!(sidecar.ended().await, "its application has ended");
}

#[tokio::test]
async fn a_killed_sidecar_comes_back_without_a_control_plane() {
    let mut lab = Lab::new().await;
    let mut sidecar = Sidecar::start(&lab);
    sidecar.ready().await;
    let facts = lab.file("proxy/facts.pb");
    eventually("its facts are kept", || facts.exists()).await;
    lab.control = None;
    sidecar.signal(Signal::KILL);
    assert!(!sidecar.ended().await);

    let mut sidecar = Sidecar::start(&lab);
    sidecar.ready().await;
    assert_eq!(request(sidecar.addresses[2], "POST", "/quitquitquit", "localhost").await.0, 200);
    assert!(sidecar.ended().await, "told to quit, it ends at once");
}

#[tokio::test]
async fn a_new_process_takes_over_and_nobody_is_refused_meanwhile() {
    let lab = Lab::new().await;
    let mut old = Sidecar::start(&lab);
    old.ready().await;
    assert_eq!(old.life().as_deref(), Some("first"));
    let addresses = old.addresses.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let prober = std::thread::spawn(move || {
        let mut failures = Vec::new();
        while stopped.try_recv().is_err() {
            for address in &addresses {
                if let Err(error) = TcpStream::connect(address) {
                    failures.push(format!("{address}: {error}"));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        failures
    });
    let mut new = Sidecar::start_at(&lab, old.addresses.clone(), "second");
    eventually("the second one serves, and was never unready", || {
        let life = new.life();
        assert!(life.is_some(), "not ready");
        life.as_deref() == Some("second")
    })
    .await;
    assert!(old.ended().await, "the first one ends in order");

    // And again, by the door that the second has opened.
    let mut third = Sidecar::start_at(&lab, new.addresses.clone(), "third");
    eventually("the third one serves", || third.life().as_deref() == Some("third")).await;
    assert!(new.ended().await, "the second one ends in order");
    stop.send(()).expect("a prober");
    let failures = prober.join().expect("a prober");
    assert!(failures.is_empty(), "{failures:?}");
    third.signal(Signal::TERM);
    assert!(third.ended().await);
}

#[tokio::test]
async fn a_successor_that_cannot_serve_changes_nothing() {
    let mut lab = Lab::new().await;
    let old = Sidecar::start(&lab);
    old.ready().await;
    // Without what the first has kept, and with nobody to ask, the second waits.
    lab.control = None;
    for file in ["proxy/svid.pem", "proxy/roots.pem"] {
        std::fs::remove_file(lab.file(file)).expect("kept");
    }
    let mut new = Sidecar::start_at(&lab, old.addresses.clone(), "second");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(old.life().as_deref(), Some("first"));
    new.signal(Signal::TERM);
    assert!(new.ended().await, "it goes as it came");
    assert_eq!(old.life().as_deref(), Some("first"));
    // The one that serves dies while the next gets ready: that one serves then.
    let next = Sidecar::start_at(&lab, old.addresses.clone(), "next");
    drop(old);
    lab.start_control().await;
    next.ready().await;
    assert_eq!(next.life().as_deref(), Some("next"));
}
