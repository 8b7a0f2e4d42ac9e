//! Private keys: kept where they belong, and in no line of a log.

use std::io;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use super::ca_files::Folder;
use super::fake_api::FakeApi;
use super::rotation::root;
use super::{PLUGGED_IN, SELF_SIGNED, eventually, start, start_with};
use crate::CaFolder;
use crate::jwt::SECRET as JWT_SECRET;

/// Everything that is logged, at every level, by everyone on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The entries of a Secret, decoded.
fn entries(secret: &Value) -> Vec<(String, Vec<u8>)> {
    let data = secret["data"].as_object().expect("entries");
    let decoded = |value: &Value| STANDARD.decode(value.as_str().expect("text")).expect("base64");
    data.iter().map(|(name, value)| (name.clone(), decoded(value))).collect()
}

/// The bytes of the private keys in a Secret.
fn private_keys(secret: &Value) -> Vec<Vec<u8>> {
    let pems =
        entries(secret).into_iter().filter(|(_, text)| text.windows(11).any(|part| part == b"PRIVATE KEY"));
    let keys = pems.map(|(_, pem)| {
        let text = String::from_utf8(pem).expect("text");
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        STANDARD.decode(body).expect("base64")
    });
    keys.collect()
}

/// Every form in which a log could hold a piece of a key: PEM's, a Secret's, hexadecimal, a list of numbers.
fn pieces(key: &[u8]) -> Vec<String> {
    // The secret number is in the middle of a PKCS#8 key; its first bytes are the same in all.
    let middle = &key[36..60];
    let hex: String = middle.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = |separator: &str| middle.iter().map(u8::to_string).collect::<Vec<_>>().join(separator);
    let mut all = vec![hex.clone(), hex.to_uppercase(), list(", "), list(",")];
    all.extend([STANDARD.encode(middle), URL_SAFE_NO_PAD.encode(middle)]);
    let pem = STANDARD.encode(key);
    // What is encoded twice, as in a Secret, has other letters at each of three offsets.
    for start in 0..3 {
        let inner = &pem.as_bytes()[66 + start..93 + start];
        all.push(STANDARD.encode(inner));
    }
    // Within PEM's second line.
    all.push(pem[66..93].to_owned());
    all
}

#[tokio::test]
async fn no_line_of_the_log_holds_a_piece_of_a_private_key() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    // While there is but one, whichever thread says something first decides whether it is listened to, and those of other
    // tests have none.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let api = FakeApi::new();
    let folder = Folder::new();
    let running = start_with(api.clone(), |options| {
        options.ca_folder = Some(CaFolder { path: folder.path(), must_exist: true });
    })
    .await;
    running.ready().await;
    let secret = |name: &'static str| async {
        eventually(name, async || api.get("secrets", "istio-system", name)).await
    };
    let (own, tokens) = (secret(SELF_SIGNED).await, secret(JWT_SECRET).await);
    running.http("/ca/issued").await;
    running.http("/ca").await;
    // What is broken is complained of, without showing it: another root's key, and a key that is none.
    let (ca, other) = (root(0, 7200), root(0, 7200));
    folder.fill(&ca);
    folder.write("ca-key.pem", &other.key_pem());
    eventually("complaint", async || {
        running.http("/ca").await.1.contains("do not belong together").then_some(())
    })
    .await;
    folder.write("ca-key.pem", &ca.key_pem());
    let files = secret(PLUGGED_IN).await;
    let mut plugged = own.clone();
    plugged["metadata"]["name"] = json!("cacerts");
    let token_key = tokens["data"].as_object().and_then(|data| data.values().next()).expect("a key").clone();
    plugged["data"]["ca-key.pem"] = token_key;
    api.put("secrets", plugged);
    // What it is that it says of them is another test's business.
    for _ in 0..200 {
        if running.http("/ca").await.1.contains("cacerts") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    running.stop.send_replace(true);
    running.task.await.expect("no panic").expect("stops");

    let log = String::from_utf8_lossy(&lines.0.lock().expect("lock")).into_owned();
    assert!(log.contains("the world is complete"), "the log is captured");
    let keys: Vec<_> = [&own, &tokens, &files].into_iter().flat_map(private_keys).collect();
    assert!(keys.len() >= 3, "{} keys", keys.len());
    for key in keys {
        for piece in pieces(&key) {
            assert!(!log.contains(&piece), "a piece of a key is in the log: {piece}");
        }
    }
    assert!(!log.contains("PRIVATE KEY"), "no key in PEM");
}

/// What must hold of the search itself, or it would find nothing ever.
#[test]
fn pieces_are_found_in_what_a_careless_log_would_hold() {
    let key: Vec<u8> = (0..140).map(|n: u8| n.wrapping_mul(73).wrapping_add(11)).collect();
    let pem = STANDARD.encode(&key);
    for careless in [format!("{key:?}"), pem.clone(), STANDARD.encode(format!("-----BEGIN-----\n{pem}"))] {
        assert!(pieces(&key).iter().any(|piece| careless.contains(piece)), "{careless}");
    }
}

#[tokio::test]
async fn keys_of_jwt_svids_are_made_once_stored_and_found_again() {
    let api = FakeApi::new();
    let running = start(api.clone()).await;
    running.ready().await;
    let first = eventually("the Secret", async || api.get("secrets", "istio-system", JWT_SECRET)).await;
    assert_eq!(first["type"], "maille.dev/jwt-svid-keys");
    let names: Vec<_> = entries(&first).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.starts_with("key-") && name.ends_with(".pem")), "{names:?}");
    running.stop.send_replace(true);
    running.task.await.expect("no panic").expect("stops");
    let again = start(api.clone()).await;
    again.ready().await;
    assert_eq!(api.get("secrets", "istio-system", JWT_SECRET).expect("there")["data"], first["data"]);
}
