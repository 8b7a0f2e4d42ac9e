//! openssl in a directory of its own.

use std::process::Command;

pub(crate) struct Openssl(tempfile::TempDir);

// Each test binary uses some of these.
#[allow(dead_code)]
impl Openssl {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("directory"))
    }

    /// Runs it; its standard output.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|problem| panic!("openssl {arguments:?}: {problem}"))
    }

    /// Runs it; its standard output, or what it complains about.
    pub(crate) fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("write");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).expect("read")
    }

    /// Makes `NAME.pem` and `NAME.key`: an authority with a key of this kind, self-signed or signed by another one.
    pub(crate) fn authority(&self, name: &str, signer: Option<&str>, kind: &[&str], days: u32) {
        self.write(
            "authority.ext",
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n",
        );
        let (key, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let (subject, days) = (format!("/O=Corp/CN={name}"), days.to_string());
        let made = ["req", "-new", "-nodes", "-keyout", &key, "-out", &request, "-subj", &subject];
        self.run(&[&made, kind].concat());
        let (signer_pem, signer_key) = match signer {
            Some(signer) => (format!("{signer}.pem"), format!("{signer}.key")),
            None => (String::new(), key.clone()),
        };
        let mut sign = vec!["x509", "-req", "-in", &request, "-days", &days, "-extfile", "authority.ext"];
        sign.extend(["-out", &certificate]);
        match signer {
            Some(_) => sign.extend(["-CA", &signer_pem, "-CAkey", &signer_key, "-CAcreateserial"]),
            None => sign.extend(["-signkey", &signer_key]),
        }
        self.run(&sign);
    }
}
