//! What `--to` names: the material of an authority, checked before it leaves this machine.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maille_pki::Authority;
use serde_json::{Map, Value, json};

/// Istio's names for a plugged-in CA, and those of a TLS Secret (reference mtls 5.5).
const PLUGGED_IN: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"];
const TLS_SECRET: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
/// Larger than any chain.
const MAX_FILE: u64 = 1 << 20;

/// Entries of a Secret, by name. Not `Debug`: a key is among them.
pub(super) struct Material(Vec<(&'static str, Vec<u8>)>);

impl Material {
    /// Reads a folder or a file; it must hold an authority that can sign.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let found = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
        let material = if found.is_dir() { Self::of_folder(path)? } else { Self::of_file(path)? };
        Authority::from_secret(|key| material.entry(key))
            .with_context(|| format!("{shown} is no usable authority"))?;
        Ok(material)
    }

    fn of_folder(path: &Path) -> Result<Self> {
        let has = |name: &str| path.join(name).is_file();
        // The second form is chosen by its certificate, as Istio does.
        let names: &[&'static str] = if has("tls.crt") { &TLS_SECRET } else { &PLUGGED_IN };
        let missing: Vec<&str> =
            names.iter().copied().filter(|name| !has(name) && *name != "cert-chain.pem").collect();
        ensure!(
            missing.is_empty(),
            "{} lacks {}; an authority is ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, or tls.crt, tls.key \
             and ca.crt",
            path.display(),
            missing.join(", ")
        );
        let names = names.iter().copied().filter(|name| has(name));
        Ok(Self(names.map(|name| Ok((name, bytes(&path.join(name))?))).collect::<Result<_>>()?))
    }

    /// One text of PEM: the first certificate signs, the key is its own; what is self-issued is a root.
    fn of_file(path: &Path) -> Result<Self> {
        let text =
            String::from_utf8(bytes(path)?).ok().with_context(|| format!("{} is no PEM", path.display()))?;
        let (certificates, keys) = sections(&text);
        ensure!(
            keys.len() == 1 && !certificates.is_empty(),
            "{} holds {} certificates and {} keys; it takes the signing certificate, its key, and its roots",
            path.display(),
            certificates.len(),
            keys.len()
        );
        let mut roots = String::new();
        let mut chain = String::new();
        for pem in &certificates {
            let described = super::super::described::described("certificate", pem)?;
            match described.iter().all(|(_, shown)| shown.subject == shown.issuer) {
                true => roots.push_str(pem),
                false => chain.push_str(pem),
            }
        }
        if roots.is_empty() {
            bail!("{} holds no root (a certificate that signed itself)", path.display());
        }
        let signing = certificates.first().cloned().unwrap_or_default();
        Ok(Self(vec![
            ("ca-cert.pem", signing.into_bytes()),
            ("ca-key.pem", keys.concat().into_bytes()),
            ("root-cert.pem", roots.into_bytes()),
            ("cert-chain.pem", chain.into_bytes()),
        ]))
    }

    fn entry(&self, key: &str) -> Option<&[u8]> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, bytes)| bytes.as_slice())
    }

    /// Entries of a Secret with `prefix` before their names; those of the other form, which an earlier request may have
    /// left, are taken away.
    pub(super) fn entries(&self, prefix: &str) -> Map<String, Value> {
        let all = PLUGGED_IN.iter().chain(&TLS_SECRET);
        let value = |name: &str| self.entry(name).map_or(Value::Null, |bytes| json!(STANDARD.encode(bytes)));
        all.map(|name| (format!("{prefix}{name}"), value(name))).collect()
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let unreadable = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(unreadable)?.len();
    ensure!(size <= MAX_FILE, "{} is larger than a mebibyte, and so no PEM of an authority", path.display());
    std::fs::read(path).with_context(unreadable)
}

/// The certificates and the private keys of a text, each as PEM.
fn sections(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    let mut current: Option<String> = None;
    for line in text.lines() {
        if line.starts_with("-----BEGIN ") {
            current = Some(String::new());
        }
        if let Some(section) = &mut current {
            section.push_str(line.trim_end());
            section.push('\n');
        }
        if line.starts_with("-----END ")
            && let Some(section) = current.take()
        {
            match () {
                () if line.contains("PRIVATE KEY") => keys.push(section),
                () if line.contains("CERTIFICATE-----") => certificates.push(section),
                () => {}
            }
        }
    }
    (certificates, keys)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn openssl(folder: &Path, arguments: &[&str]) {
        let output =
            Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A root and an intermediate, as an operator makes them.
    fn operator() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let common = |rest: &[&'static str]| [&["req"], rest, &key[..]].concat();
        openssl(
            at,
            &common(&[
                "-x509",
                "-days",
                "30",
                "-subj",
                "/O=Corp",
                "-keyout",
                "root-key.pem",
                "-out",
                "root-cert.pem",
            ]),
        );
        openssl(at, &common(&["-new", "-subj", "/O=Corp mesh", "-keyout", "ca-key.pem", "-out", "ca.csr"]));
        std::fs::write(
            at.join("ext"),
            "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n",
        )
        .expect("written");
        openssl(
            at,
            &[
                "x509",
                "-req",
                "-in",
                "ca.csr",
                "-CA",
                "root-cert.pem",
                "-CAkey",
                "root-key.pem",
                "-days",
                "20",
                "-extfile",
                "ext",
                "-out",
                "ca-cert.pem",
            ],
        );
        std::fs::copy(at.join("ca-cert.pem"), at.join("cert-chain.pem")).expect("copied");
        folder
    }

    #[test]
    fn a_folder_and_a_file_of_openssl_are_taken() {
        let folder = operator();
        let of_folder = Material::read(folder.path()).unwrap_or_else(|e| panic!("{e:#}"));
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
        let one = folder.path().join("all.pem");
        let all = ["ca-cert.pem", "ca-key.pem", "root-cert.pem"].map(text).concat();
        std::fs::write(&one, all).expect("written");
        let of_file = Material::read(&one).unwrap_or_else(|e| panic!("{e:#}"));
        for name in ["ca-cert.pem", "root-cert.pem", "cert-chain.pem"] {
            assert_eq!(of_folder.entry(name), of_file.entry(name), "{name}");
        }
        let entries = of_file.entries("next-");
        assert!(entries["next-ca-key.pem"].is_string() && entries["next-tls.crt"].is_null(), "of one form");
    }

    #[test]
    fn what_is_missing_or_does_not_fit_is_said_before_it_leaves() {
        let folder = operator();
        let refusal = |path: &Path| format!("{:#}", Material::read(path).err().expect("refused"));
        std::fs::rename(folder.path().join("root-key.pem"), folder.path().join("ca-key.pem")).expect("moved");
        assert!(refusal(folder.path()).contains("do not belong together"), "{}", refusal(folder.path()));
        std::fs::remove_file(folder.path().join("ca-key.pem")).expect("removed");
        assert!(refusal(folder.path()).contains("lacks ca-key.pem"), "{}", refusal(folder.path()));
        assert!(refusal(&folder.path().join("root-cert.pem")).contains("1 certificates and 0 keys"));
        assert!(refusal(Path::new("/nonexistent")).contains("/nonexistent"));
    }
}
