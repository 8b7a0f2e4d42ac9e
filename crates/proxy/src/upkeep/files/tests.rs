use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

/// A volume as Kubernetes makes it: files are links into `..data`, which is a link to the content.
struct Volume(tempfile::TempDir);

impl Volume {
    fn new() -> Self {
        let volume = Self(tempfile::tempdir().expect("a directory"));
        for name in ["cert.pem", "key.pem", "ca.pem"] {
            symlink(Path::new("..data").join(name), volume.path(name)).expect("a link");
        }
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn files(&self) -> OrderFiles {
        let text = |name| self.path(name).to_str().expect("text").into();
        OrderFiles {
            own: Some((text("cert.pem"), text("key.pem"))),
            roots: RootsFrom::File(text("ca.pem")),
            ..OrderFiles::default()
        }
    }

    /// Swaps the content at once.
    fn put(&self, version: &str, content: &[(&str, &str)]) {
        let folder = self.path(version);
        std::fs::create_dir(&folder).expect("a directory");
        for (name, text) in content {
            std::fs::write(folder.join(name), text).expect("a file");
        }
        symlink(version, self.path("..tmp")).expect("a link");
        std::fs::rename(self.path("..tmp"), self.path("..data")).expect("swapped");
    }
}

fn good() -> (String, String, String) {
    let authority = maille_testkit::TestAuthority::new();
    let client = authority.client("payment-service", None);
    (client.chain_pem(), client.key_pem(), authority.roots_pem())
}

fn look(watched: &mut Watched, files: &OrderFiles, material: &Material) {
    watched.look(files, material, SystemTime::now());
}

#[test]
fn a_swapped_volume_is_read_again_and_a_bad_one_does_not_replace_a_good_one() {
    let volume = Volume::new();
    let (files, material) = (volume.files(), Material::default());
    let mut watched = Watched::default();
    look(&mut watched, &files, &material);
    let problem = material.current().problem.clone().unwrap_or_default();
    assert!(problem.contains("clientCertificate") && problem.contains("cert.pem"), "{problem}");
    assert!(problem.contains("userVolumeMount"), "{problem}");

    let (cert, key, ca) = good();
    volume.put("1", &[("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca)]);
    look(&mut watched, &files, &material);
    let first = material.current();
    assert!(first.origin.is_some() && first.problem.is_none(), "{first:?}");
    let generation = material.generation();
    look(&mut watched, &files, &material);
    assert_eq!(material.generation(), generation, "nothing has changed");

    let (other, ..) = good();
    volume.put("2", &[("cert.pem", &other), ("key.pem", &key), ("ca.pem", &ca)]);
    look(&mut watched, &files, &material);
    let kept = material.current();
    let problem = kept.problem.clone().unwrap_or_default();
    assert!(problem.contains("do not belong together") && problem.contains("key.pem"), "{problem}");
    assert!(kept.origin.as_ref().zip(first.origin.as_ref()).is_some_and(|(a, b)| Arc::ptr_eq(a, b)));
    assert_eq!(material.generation(), generation, "connections go on with what is in force");

    let (cert, key, ca) = good();
    volume.put("3", &[("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca)]);
    look(&mut watched, &files, &material);
    assert!(material.current().problem.is_none() && material.generation() > generation);
}

#[test]
fn what_is_no_file_of_pem_is_refused_by_name_and_without_its_content() {
    let volume = Volume::new();
    let (cert, key, ca) = good();
    let cases: [(&str, &str, &str); 4] = [
        ("cert.pem", "hush-hush", "clientCertificate"),
        ("key.pem", "hush-hush", "privateKey"),
        ("key.pem", &cert, "privateKey"),
        ("ca.pem", "hush-hush", "caCertificates"),
    ];
    for (index, (bad, text, field)) in cases.into_iter().enumerate() {
        let pick = |name, good| if name == bad { text } else { good };
        let content = [
            ("cert.pem", pick("cert.pem", &cert)),
            ("key.pem", pick("key.pem", &key)),
            ("ca.pem", pick("ca.pem", &ca)),
        ];
        volume.put(&format!("bad-{index}"), &content);
        let error = read(&volume.files()).expect_err("refused");
        assert!(error.contains(field) && error.contains(bad), "{error}");
        assert!(!error.contains("hush") && !error.contains("BEGIN"), "{error}");
    }
    for (path, why) in [("certs/ca.pem", "absolute"), ("/dev/null", "regular"), ("/", "regular")] {
        let files = OrderFiles { roots: RootsFrom::File(path.into()), ..OrderFiles::default() };
        let error = read(&files).expect_err("refused");
        assert!(error.contains(why) && error.contains(path), "{error}");
    }
}

#[test]
fn connections_made_with_a_certificate_do_not_outlive_it() {
    let volume = Volume::new();
    let (cert, key, ca) = good();
    volume.put("1", &[("cert.pem", &cert), ("key.pem", &key), ("ca.pem", &ca)]);
    let (files, material) = (volume.files(), Material::default());
    let mut watched = Watched::default();
    look(&mut watched, &files, &material);
    let generation = material.generation();
    let later = SystemTime::now() + Duration::from_secs(1 << 30);
    watched.look(&files, &material, later);
    assert_eq!(material.generation(), generation + 1);
    watched.look(&files, &material, later);
    assert_eq!(material.generation(), generation + 1, "once is enough");
}
