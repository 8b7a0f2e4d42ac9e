//! Clocks that jump, and a mesh that was stopped until nothing it holds is valid any more.
//!
//! Nobody sets the machine's clock for that: the mesh's own processes read theirs from a file (`fixtures/clock.c`).

use std::cell::Cell;
use std::ffi::OsString;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::mesh::{Mesh, eventually};
use crate::soak::{self, Soak};

const HOUR: i64 = 3600;
/// Longer than certificates (24 h) and tokens (12 h) live.
const TWO_DAYS: i64 = 48 * HOUR;
/// How long everything may take to be as before: clients of the API read their token anew once a minute.
const RECOVERY: Duration = Duration::from_secs(120);
/// The load ends when it is told to.
const LOAD: Duration = Duration::from_secs(400);
/// Where containers have a clock's folder.
const MOUNTED: &str = "/clock";

/// A time of day for some processes.
pub(crate) struct Clock {
    folder: PathBuf,
}

impl Clock {
    /// Goes as the machine's does, to begin with.
    fn new(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        let library = folder.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/fixtures/clock.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .output()
            .context("cannot start cc")?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        std::fs::write(folder.join("preload"), format!("{MOUNTED}/clock.so\n"))?;
        let clock = Self { folder };
        std::fs::write(clock.offset(), 0_i64.to_ne_bytes())?;
        for file in ["preload", "offset"] {
            std::fs::set_permissions(clock.folder.join(file), std::fs::Permissions::from_mode(0o644))?;
        }
        Ok(clock)
    }

    fn offset(&self) -> PathBuf {
        self.folder.join("offset")
    }

    /// Sets it so many seconds before or after the machine's.
    fn set(&self, seconds: i64) -> Result<()> {
        let file = std::fs::File::options().write(true).open(self.offset())?;
        Ok(file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0)?)
    }

    /// For a process outside of containers.
    fn environment(&self) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", self.folder.join("clock.so").into()), ("CLOCK_OFFSET", self.offset().into())]
    }

    fn volume(&self) -> Value {
        json!({"hostPath": {"path": self.folder, "type": "Directory"}})
    }

    /// Annotations by which a Pod's sidecar goes by it.
    pub(crate) fn annotations(&self) -> [(&'static str, String); 2] {
        let mounts = json!({
            "clock": {"mountPath": MOUNTED, "readOnly": true},
            "preload": {"mountPath": "/etc/ld.so.preload", "subPath": "preload", "readOnly": true},
        });
        let volumes = json!({"clock": self.volume(), "preload": self.volume()});
        [
            ("sidecar.istio.io/userVolume", volumes.to_string()),
            ("sidecar.istio.io/userVolumeMount", mounts.to_string()),
        ]
    }

    /// A patch by which the control plane goes by it.
    fn control_plane(&self) -> String {
        let container = json!({
            "name": "discovery",
            "env": [{"name": "LD_PRELOAD", "value": format!("{MOUNTED}/clock.so")}],
            "volumeMounts": [{"name": "clock", "mountPath": MOUNTED, "readOnly": true}],
        });
        let volume = json!({"name": "clock", "hostPath": {"path": self.folder, "type": "Directory"}});
        json!({"spec": {"template": {"spec": {"containers": [container], "volumes": [volume]}}}}).to_string()
    }
}

/// A mesh whose processes can be told another time, with a load.
struct Moved<'a> {
    mesh: &'a Mesh,
    soak: &'a Soak<'a>,
    /// Everything's but that of one proxy, that of `steady`.
    all: &'a Clock,
    one: &'a Clock,
    /// Seconds before or after the machine's.
    set_to: Cell<i64>,
}

impl Moved<'_> {
    fn set(&self, seconds: i64) -> Result<()> {
        self.set_to.set(seconds);
        self.all.set(seconds)?;
        self.one.set(seconds)
    }

    /// A load while something happens to the clocks, and what it lost; then all is as before within a bound.
    fn through(&self, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let load = self.soak.load("", LOAD)?;
        std::thread::sleep(Duration::from_secs(2));
        let changed = Instant::now();
        let outcome = change().and_then(|()| {
            // Clocks are looked at once a second or two; what is lost until then belongs to it.
            std::thread::sleep(Duration::from_secs(4));
            eventually(RECOVERY, || ["steady", "changing"].iter().try_for_each(|to| self.calls(to)))
        });
        let took = changed.elapsed().as_secs();
        let stopped = self.soak.stop();
        let report = soak::report(load)?;
        println!(
            "        {what}: {}, {} lost in {took} s, until calls were answered",
            report.done,
            report.lost.len()
        );
        outcome
            .and(stopped)
            .with_context(|| format!("{what}; the last losses: {:?}", report.last_lost(3)))?;
        self.is_as_before(what)
    }

    fn calls(&self, to: &str) -> Result<()> {
        let (code, body) = self.mesh.curl("soak/load", &[&format!("http://{to}:8080/")])?;
        ensure!(code == 200, "a call to {to} is answered {code} {body}");
        Ok(())
    }

    fn is_as_before(&self, after: &str) -> Result<()> {
        eventually(RECOVERY, || {
            soak::report(self.soak.load("", Duration::from_secs(4))?)?.nothing_is_lost(after)
        })
    }

    /// One proxy alone goes by another time: calls between the others go on, `maille check` names its clock, and it is back
    /// when that is.
    fn one_alone(&self, seconds: i64, way: &str) -> Result<()> {
        let here = self.set_to.get();
        self.through(&format!("one proxy's clock was {way} the others'"), || {
            self.one.set(here + seconds)?;
            eventually(RECOVERY, || {
                // By the clock of the mesh, too.
                let mut check = self.mesh.maille_command(&["check"]);
                let check = check.envs(self.all.environment()).output()?.stdout;
                let check = String::from_utf8_lossy(&check);
                let told = check.lines().find(|line| line.contains("clock of soak/steady-"));
                let told =
                    told.with_context(|| format!("`maille check` does not name the clock: {check}"))?;
                ensure!(told.contains(way), "it is said of a clock that is {way} the authority's: {told}");
                self.calls("changing")
            })?;
            self.one.set(here)
        })
    }
}

/// Clocks are set forward and back, of one proxy and of everything, and a mesh is stopped for two days.
pub(crate) fn jumps() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("maille-e2e-clock-").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    let (all, one) = (Clock::new(folder.path().join("all"))?, Clock::new(folder.path().join("one"))?);
    let mesh = Mesh::start_in(&[], &all.environment())?;
    mesh.kubectl(&["patch", "deployment/istiod", "-n", "istio-system", "-p", &all.control_plane()])?;
    mesh.kubectl(&["rollout", "status", "deployment/istiod", "-n", "istio-system", "--timeout=120s"])?;
    let clocks = vec![("steady", &one), ("changing", &all), ("load", &all)];
    let soak = Soak::start_by(&mesh, "24h", clocks)?;
    let moved = Moved { mesh: &mesh, soak: &soak, all: &all, one: &one, set_to: Cell::new(0) };
    moved.is_as_before("before anything happens")?;
    moved.through("after two days without running", || stopped(&moved))?;
    moved.through("after all clocks were set back by an hour", || moved.set(TWO_DAYS - HOUR))?;
    moved.through("after all clocks were set forward by two days", || moved.set(2 * TWO_DAYS))?;
    moved.through("after all clocks were set back by two days", || moved.set(TWO_DAYS))?;
    moved.one_alone(TWO_DAYS, "ahead of")?;
    moved.one_alone(-HOUR, "behind")
}

/// Every process of the mesh stands still for two days.
fn stopped(moved: &Moved<'_>) -> Result<()> {
    // Each has an end that was to come meanwhile: certificates after 24 hours, tokens after 12.
    let mut processes = moved.mesh.pids()?;
    processes.push(i32::try_from(moved.mesh.supervisor_pid())?);
    let processes: Vec<Pid> = processes.into_iter().filter_map(Pid::from_raw).collect();
    for process in &processes {
        // Some are gone by now.
        let _ = kill_process(*process, Signal::STOP);
    }
    let set = moved.set(TWO_DAYS);
    for process in &processes {
        let _ = kill_process(*process, Signal::CONT);
    }
    set
}
