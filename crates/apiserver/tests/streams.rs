//! Streams into Pods, as kubectl and the `kube` client ask for them.

#[path = "support/pods.rs"]
mod pods;
mod support;

use std::net::TcpListener;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use support::{Server, eventually, kubectl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn config(server: &Server) -> Config {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("a kubeconfig");
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config")
}

async fn pods_api(server: &Server) -> Api<Pod> {
    Api::namespaced(Client::try_from(config(server).await).expect("a client"), "default")
}

fn wait_for<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let limit = std::time::Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, work).await.expect("in time") })
}

/// A server inside the Pod that sends back what it got, in capitals, when the client has sent 300 kB.
fn shouting_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut text = vec![0; 300_000];
                stream.read_exact(&mut text).expect("read");
                text.make_ascii_uppercase();
                stream.write_all(&text).expect("written");
            });
        }
    });
    port
}

#[test]
fn ports_are_forwarded_to_the_kube_client_both_ways_and_end_when_the_pod_ends_them() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let (first, second) = (shouting_port(), shouting_port());
    wait_for(async {
        let mut forward =
            pods_api(&server).await.portforward("one", &[first, second]).await.expect("forwarded");
        let mut streams = Vec::new();
        for port in [second, first] {
            let mut stream = forward.take_stream(port).expect("a stream");
            let sent = vec![b'x'; 300_000];
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let mut got = vec![0; sent.len()];
            let (written, came) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
            written.expect("written");
            came.expect("read");
            assert!(got.iter().all(|byte| *byte == b'X'));
            // Kept: closing one would close all in this protocol.
            streams.push(stream);
        }
        for stream in &mut streams {
            let rest = stream.read(&mut [0; 8]).await.expect("an end");
            assert_eq!(rest, 0, "both have ended inside the Pod, hence the whole");
        }
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_told_on_its_own_channel() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    wait_for(async {
        let mut forward = pods_api(&server).await.portforward("one", &[closed]).await.expect("forwarded");
        let error = forward.take_error(closed).expect("a channel").await.expect("a message");
        assert!(
            error.contains(&format!("127.0.0.1:{closed} inside the pod")) && error.contains("refused"),
            "{error}"
        );
    });
}

#[test]
fn pods_that_do_not_run_are_not_reached() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    wait_for(async {
        let pods = pods_api(&server).await;
        for (pod, code, part) in
            [("waiting", 400, "Current status=Pending"), ("none", 404, "\"none\" not found")]
        {
            match pods.portforward(pod, &[80]).await.map(drop) {
                Err(kube::Error::Api(status)) => {
                    assert_eq!(status.code, code);
                    assert!(status.message.contains(part), "{}", status.message);
                }
                other => panic!("{pod}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_command_gives_output_errors_and_its_exit_code() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let script = "echo out; echo $CONTAINER; echo err >&2; exit 3";
    let (ok, out, err) = server.try_kubectl(&["exec", "one", "-c", "a", "--", "sh", "-c", script], "");
    assert!(!ok);
    assert_eq!(out, "out\na\n");
    assert_eq!(err, "err\ncommand terminated with exit code 3\n");
    assert_eq!(
        server.kubectl(&["exec", "one", "-c", "a", "--", "echo", "fine", "a b", "c&d=é"]),
        "fine a b c&d=é\n"
    );
}

#[test]
fn input_goes_to_the_command_and_ends() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let input: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let (ok, out, err) = server.try_kubectl(&["exec", "-i", "one", "-c", "a", "--", "cat"], &input);
    assert!(ok, "{err}");
    assert!(out == input, "{} of {} bytes came back", out.len(), input.len());
    // A command that does not read to the end is not waited for.
    let (ok, out, err) =
        server.try_kubectl(&["exec", "-i", "one", "-c", "a", "--", "head", "-c", "2"], &input);
    assert!(ok, "{err}");
    assert_eq!(out, "0\n");
}

#[test]
fn without_a_terminal_kubectl_warns_and_goes_on() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let (ok, out, err) = server.try_kubectl(&["exec", "-it", "one", "-c", "a", "--", "cat"], "hello\n");
    assert!(ok, "{err}");
    assert_eq!(out, "hello\n");
    assert!(err.contains("Unable to use a TTY"), "{err}");
}

#[test]
fn commands_and_containers_that_are_not_there_are_named() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let refused = |arguments: &[&str]| server.refused(&[&["exec"], arguments].concat(), "");
    let err = refused(&["one", "-c", "a", "--", "no-such-program"]);
    assert!(err.contains("no-such-program: No such file") && err.ends_with("exit code 127\n"), "{err}");
    let err = refused(&["one", "-c", "z", "--", "true"]);
    assert!(err.contains("container z is not valid for pod one"), "{err}");
    let err = refused(&["one", "-c", "b", "--", "true"]);
    assert!(err.contains("container not found (\"b\")"), "{err}");
    let err = refused(&["none", "--", "true"]);
    assert_eq!(err, "Error from server (NotFound): pods \"none\" not found\n");
}

#[test]
fn accounts_without_rights_run_nothing() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    wait_for(async {
        let mut config = config(&server).await;
        config.auth_info.impersonate = Some("system:serviceaccount:default:default".into());
        let pods: Api<Pod> = Api::namespaced(Client::try_from(config).expect("a client"), "default");
        let refused = [
            pods.exec("one", ["true"], &AttachParams::default().container("a")).await.map(drop),
            pods.portforward("one", &[80]).await.map(drop),
        ];
        for (refusal, what) in refused.into_iter().zip(["exec", "portforward"]) {
            match refusal {
                Err(kube::Error::Api(status)) => {
                    assert_eq!(status.code, 403);
                    let part = format!("cannot create resource \"pods/{what}\"");
                    assert!(status.message.contains(&part), "{}", status.message);
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    });
}

#[test]
fn the_kube_client_gets_streams_and_a_status() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    wait_for(async {
        let pods = pods_api(&server).await;
        let unknown = pods.exec("one", ["true"], &AttachParams::default().container("z")).await.map(drop);
        assert!(
            matches!(&unknown, Err(kube::Error::Api(status)) if status.message == "container z is not valid for pod one"),
            "{unknown:?}"
        );
        let parameters = AttachParams::default().container("a").stdin(true);
        let mut command =
            pods.exec("one", ["sh", "-c", "wc -c; exit 4"], &parameters).await.expect("started");
        let status = command.take_status().expect("once");
        let mut stdin = command.stdin().expect("asked for");
        stdin.write_all(&vec![b'x'; 70_000]).await.expect("written");
        // Half a close: the command ends its input and answers.
        stdin.shutdown().await.expect("shut");
        let mut out = String::new();
        command.stdout().expect("asked for").read_to_string(&mut out).await.expect("read");
        assert_eq!(out.trim(), "70000");
        let status = serde_json::to_value(status.await.expect("a status")).expect("JSON");
        assert_eq!(status["reason"], "NonZeroExitCode");
        let cause = serde_json::json!({ "reason": "ExitCode", "message": "4" });
        assert_eq!(status["details"]["causes"][0], cause, "{status}");
    });
}

#[test]
fn what_a_command_leaves_behind_does_not_hold_the_client() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let out = server.kubectl(&["exec", "one", "-c", "a", "--", "sh", "-c", "sleep 30 & echo done"]);
    assert_eq!(out, "done\n");
}

#[test]
fn a_command_ends_when_its_client_goes_away() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let mark = server.dir.path().join("pid");
    let script = format!("echo $$ > {}.new; mv {0}.new {0}; exec sleep 600", mark.display());
    let mut client = std::process::Command::new(kubectl().expect("looked for"))
        .arg("--kubeconfig")
        .arg(server.kubeconfig())
        .args(["exec", "one", "-c", "a", "--", "sh", "-c", &script])
        .spawn()
        .expect("kubectl starts");
    eventually("the command runs", || mark.exists());
    let pid = std::fs::read_to_string(&mark).expect("a number");
    let proc = std::path::Path::new("/proc").join(pid.trim());
    assert!(proc.exists());
    client.kill().expect("killed");
    client.wait().expect("ended");
    eventually("the command is gone", || !proc.exists());
}

#[test]
fn kubectl_is_told_how_else_to_reach_a_port() {
    if kubectl().is_none() {
        return;
    }
    let server = pods::server();
    let err = server.refused(&["port-forward", "pod/one", "0:80"], "");
    assert!(err.contains("/api/v1/namespaces/default/pods/one:PORT/proxy/PATH"), "{err}");
}
