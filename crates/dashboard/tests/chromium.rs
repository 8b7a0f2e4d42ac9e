//! The page in a real browser: it draws the mesh, breaks no policy and logs no error, in light and dark, and stays live.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{Fixture, KEY, serve};
use tokio::process::Command;

/// How long the browser may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The browser; without it the test is skipped loudly, but never in CI.
fn chromium() -> Option<&'static str> {
    let found =
        ["/usr/bin/chromium", "/usr/bin/chromium-browser"].into_iter().find(|p| Path::new(p).exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI installs the Debian package chromium");
        println!("SKIPPED (needs the Debian package chromium): the page in a browser");
    }
    found
}

/// Opens the page; what the document became, and what the browser had to say.
async fn open(browser: &str, url: &str, dark: bool) -> (String, String) {
    let profile = tempfile::tempdir().expect("a folder");
    let scheme = if dark { 0 } else { 1 };
    let mut command = Command::new(browser);
    command
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--enable-logging=stderr", "--v=0", "--window-size=1280,900", "--virtual-time-budget=9000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .args(["--dump-dom", url])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output =
        tokio::time::timeout(PATIENCE, command.output()).await.expect("in time").expect("the browser runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_browser_draws_the_mesh_and_has_nothing_to_complain_of() {
    let Some(browser) = chromium() else { return };
    for dark in [false, true] {
        let fixture = Arc::<Fixture>::default();
        let address = serve(Arc::clone(&fixture));
        let url = format!("http://{address}/?key={KEY}");
        let (dom, log) = open(browser, &url, dark).await;
        for wanted in
            ["<svg class=\"graph", "payment-service", "deny-from-untrusted", "no ALLOW rule", "plaintext 1"]
        {
            assert!(dom.contains(wanted), "dark {dark}: {wanted} is not in {dom}\n{log}");
        }
        // What a page or a policy complains of stands in the log with the word CONSOLE.
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("CONSOLE") || line.contains("Content Security Policy"))
            .collect();
        assert!(complaints.is_empty(), "dark {dark}: {complaints:#?}");
    }
}

#[tokio::test]
async fn the_script_keeps_the_page_live() {
    let Some(browser) = chromium() else { return };
    let fixture = Arc::<Fixture>::default();
    let address = serve(Arc::clone(&fixture));
    // The control plane goes away once the page is loaded; only the script can show that.
    let watched = Arc::clone(&fixture);
    tokio::spawn(async move {
        while watched.asked.load(Ordering::Relaxed) < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        watched.away.store(true, Ordering::Relaxed);
    });
    // Virtual time may outrun the second for which an answer is new: then another look is needed.
    for _ in 0..5 {
        let (dom, log) = open(browser, &format!("http://{address}/?key={KEY}"), false).await;
        if dom.contains("No answer for") {
            assert!(dom.contains("payment-service"), "{dom}\n{log}");
            return;
        }
    }
    panic!("the page did not notice that nobody answers");
}

/// Proves that the first test would see a complaint: the same look at a page that breaks a policy.
#[tokio::test]
async fn a_complaint_would_be_seen() {
    let Some(browser) = chromium() else { return };
    let page = "data:text/html,<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><script>1</script>";
    let (_, log) = open(browser, page, false).await;
    assert!(log.contains("Content Security Policy"), "{log}");
}
