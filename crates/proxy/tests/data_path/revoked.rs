//! Servers whose certificates their authority has revoked (`caCrl`, reference mtls 2.2).

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::lab::Lab;
use crate::outside::{API, NameServer, Sidecar, call, call_until};

/// An authority of openssl's, and a server certificate of it.
struct Authority {
    folder: PathBuf,
}

const CONFIG: &str =
    "[ca]\ndefault_ca = own\n[own]\ndatabase = index\ncrlnumber = number\ndefault_md = sha256\n";

impl Authority {
    fn new(folder: PathBuf) -> Self {
        std::fs::create_dir(&folder).expect("a directory");
        let authority = Self { folder };
        authority.write("config", CONFIG);
        authority.write("number", "01\n");
        authority.write("names", &format!("subjectAltName = DNS:{API}\n"));
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let root =
            ["req", "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "9"];
        authority.openssl(&[&root[..], &key[..]].concat());
        let asked = ["req", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"];
        authority.openssl(&[&asked[..], &key[..]].concat());
        authority.openssl(&[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-set_serial",
            "0x1000",
            "-days",
            "9",
            "-extfile",
            "names",
            "-out",
            "server.pem",
        ]);
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writable");
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.folder).output();
        let output = output.expect("openssl is needed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a list that is good for so many seconds and revokes the server's certificate, or nobody's.
    fn revoke(&self, is_revoked: bool, seconds: &str) {
        let line = "R\t350101000000Z\t250101000000Z\t1000\tunknown\t/CN=server\n";
        self.write("index", if is_revoked { line } else { "" });
        let list =
            ["ca", "-gencrl", "-config", "config", "-keyfile", "ca.key", "-cert", "ca.pem", "-out", "fresh"];
        self.openssl(&[&list[..], &["-crlsec", seconds]].concat());
        std::fs::rename(self.path("fresh"), self.path("crl.pem")).expect("replaced");
    }

    fn order(&self, crl: &Path) -> String {
        format!(
            "{{mode: SIMPLE, rule: production/external-api-mtls, caCertificates: {}, caCrl: {}}}",
            self.path("ca.pem").display(),
            crl.display()
        )
    }
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(authority: &Authority) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert", "server.pem", "-key", "server.key"])
            .current_dir(&authority.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("ACCEPT ")?.parse().ok());
        // Or it would end with a broken pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("openssl says where it listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_revoked_server_is_refused_as_soon_as_the_list_says_so() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let authority = Authority::new(lab.path("authority"));
    let server = Server::start(&authority);
    authority.revoke(false, "3600");
    let tls = authority.order(&authority.path("crl.pem"));
    let proxy = Sidecar::of_guide(&tls, server.address, &dns).start(&lab);
    let answer = call(&proxy);
    assert!(answer.contains("200"), "{answer}");
    // Taken up without a restart, also by connections that are there.
    authority.revoke(true, "3600");
    let answer = call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 503"));
    assert!(answer.contains("revoked"), "{answer}");
    // What is no list leaves the last one in force.
    authority.write("crl.pem", "no list\n");
    assert!(call(&proxy).contains("revoked"));
}

#[test]
fn a_list_that_is_missing_or_out_of_date_vouches_for_nobody() {
    let (lab, dns) = (Lab::new(), NameServer::of_api());
    let authority = Authority::new(lab.path("authority"));
    let server = Server::start(&authority);
    let nowhere = authority.order(&authority.path("nowhere.pem"));
    let answer = call(&Sidecar::of_guide(&nowhere, server.address, &dns).start(&lab));
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("caCrl"), "{answer}");
    // Another authority's list says nothing about this one's certificates.
    let other = Authority::new(lab.path("other"));
    other.revoke(false, "3600");
    let tls = authority.order(&other.path("crl.pem"));
    let answer = call(&Sidecar::of_guide(&tls, server.address, &dns).start(&lab));
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("caCrl"), "{answer}");
    authority.revoke(false, "1");
    let tls = authority.order(&authority.path("crl.pem"));
    let proxy = Sidecar::of_guide(&tls, server.address, &dns).start(&lab);
    let answer = call_until(&proxy, |answer| answer.starts_with("HTTP/1.1 503"));
    assert!(answer.contains("out of date"), "{answer}");
}
