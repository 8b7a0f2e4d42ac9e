//! A Pod's volumes on this node.
//!
//! Secrets, tokens, ConfigMaps and `emptyDir` in memory live on tmpfs in the supervisor's own mount
//! namespace; only disk `emptyDir`s and claims touch the disk. hostPath shows the host's files as in Kubernetes, but never the
//! data directory or what holds it, nor the kernel's file systems, `/run` and root's home: they would
//! undo the isolation that every other Pod relies on.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Volume, VolumeProjection,
};
use kube::ResourceExt as _;
use maille_net::sandbox;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::atomic::{self, Entry, Files};
use super::claim::{self, Owner};
use super::env::{Sources as _, parse_quantity, pod_field, resource_field};
use super::security::credentials;
use super::token::Tokens;
use crate::cluster::Cluster;
use crate::state::DataDir;

/// Size of a memory `emptyDir` without `sizeLimit`.
const DEFAULT_MEMORY: f64 = 64.0 * 1024.0 * 1024.0;

/// Where no hostPath may point: neither at one of these nor into it.
const NEVER_SHOWN: [&str; 8] = ["/proc", "/sys", "/dev", "/run", "/var/run", "/root", "/etc", "/boot"];

/// The volumes of one Pod.
pub(crate) struct Volumes {
    pod: Arc<Pod>,
    address: Ipv4Addr,
    data: DataDir,
    cluster: Cluster,
    tokens: Tokens,
    /// What each directory of files holds now.
    written: BTreeMap<String, Files>,
    sources: BTreeMap<String, PathBuf>,
    mounted: Vec<PathBuf>,
}

impl Volumes {
    pub(crate) fn new(pod: Arc<Pod>, address: Ipv4Addr, data: DataDir, cluster: Cluster) -> Self {
        let tokens = Tokens::new(cluster.client.clone(), &pod);
        Self {
            pod,
            address,
            data,
            cluster,
            tokens,
            written: BTreeMap::new(),
            sources: BTreeMap::new(),
            mounted: Vec::new(),
        }
    }

    fn disk(&self) -> PathBuf {
        self.data.pod(&self.pod.uid().unwrap_or_default()).join("volumes")
    }

    fn memory(&self) -> PathBuf {
        self.data.memory().join(self.pod.uid().unwrap_or_default())
    }

    fn declared(&self) -> Vec<Volume> {
        self.pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default()
    }

    /// Makes or brings up to date what can change; the error says what is missing (`FailedMount`).
    pub(crate) async fn refresh(&mut self) -> Result<(), String> {
        for volume in self.declared() {
            let name = volume.name.clone();
            let say = |e: String| format!("MountVolume.SetUp failed for volume {name:?} : {e}");
            if let Some(source) = &volume.empty_dir {
                if !self.sources.contains_key(&name) {
                    self.empty_dir(&name, source).map_err(say)?;
                }
            } else if let Some(source) = &volume.host_path {
                let path = self.host_path(source).map_err(say)?;
                self.sources.insert(name, path);
            } else if let Some(source) = &volume.persistent_volume_claim {
                if !self.sources.contains_key(&name) {
                    let namespace = self.pod.namespace().unwrap_or_default();
                    let owner = Owner { user: self.only_user(&name), group: self.fs_group() };
                    let found =
                        claim::directory(&self.cluster, &self.data, &namespace, &source.claim_name, owner)
                            .await;
                    let path = found.map_err(say)?;
                    self.sources.insert(name, path);
                }
            } else {
                let files = self.files(&volume).await.map_err(say)?;
                self.write(&name, files).map_err(say)?;
            }
        }
        Ok(())
    }

    /// Whether a token is to be replaced.
    pub(crate) fn are_due(&self) -> bool {
        self.tokens.are_due()
    }

    /// Whether one of the Pod's volumes or environment values shows this object.
    pub(crate) fn uses(&self, kind: &str, name: &str) -> bool {
        self.declared().iter().any(|volume| {
            let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            let mut projected = projected.map(|source| match kind {
                "ConfigMap" => source.config_map.as_ref().map(|s| s.name.clone()),
                _ => source.secret.as_ref().map(|s| s.name.clone()),
            });
            let direct = match kind {
                "ConfigMap" => volume.config_map.as_ref().map(|s| s.name.clone()),
                _ => volume.secret.as_ref().and_then(|s| s.secret_name.clone()),
            };
            direct.as_deref() == Some(name) || projected.any(|used| used.as_deref() == Some(name))
        })
    }

    fn write(&mut self, name: &str, files: Files) -> Result<(), String> {
        let directory = self.memory().join("files").join(name);
        if self.written.get(name) != Some(&files) {
            atomic::write(&directory, &files).map_err(|e| format!("{}: {e}", directory.display()))?;
            self.written.insert(name.to_owned(), files);
        }
        self.sources.insert(name.to_owned(), directory);
        Ok(())
    }

    async fn files(&mut self, volume: &Volume) -> Result<Files, String> {
        let namespace = self.pod.namespace().unwrap_or_default();
        if let Some(source) = &volume.config_map {
            return self.config_map(
                &namespace,
                &source.name,
                source.items.as_deref(),
                source.default_mode,
                source.optional,
            );
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.clone().unwrap_or_default();
            return self.secret(
                &namespace,
                &name,
                source.items.as_deref(),
                source.default_mode,
                source.optional,
            );
        }
        if let Some(source) = &volume.downward_api {
            return self.downward(source.items.as_deref().unwrap_or_default(), source.default_mode);
        }
        if let Some(source) = &volume.projected {
            return self.projected(&namespace, &volume.name, source).await;
        }
        Err("this kind of volume is not supported on this node (configMap, secret, emptyDir, projected, \
             downwardAPI, hostPath and persistentVolumeClaim are)"
            .to_owned())
    }

    async fn projected(
        &mut self,
        namespace: &str,
        volume: &str,
        source: &ProjectedVolumeSource,
    ) -> Result<Files, String> {
        let mode = source.default_mode;
        let mut files = Files::new();
        for part in source.sources.iter().flatten() {
            match part {
                VolumeProjection { service_account_token: Some(token), .. } => {
                    let bytes = self.tokens.current(token).await?;
                    let mut entry = entry(bytes.into_bytes(), mode, None);
                    // As Kubernetes: where one user reads it, no other can.
                    if let Some(owner) = self.only_user(volume) {
                        entry.owner = Some(owner);
                        entry.mode = 0o600;
                    }
                    files.insert(token.path.clone(), entry);
                }
                VolumeProjection { config_map: Some(map), .. } => {
                    files.extend(self.config_map(
                        namespace,
                        &map.name,
                        map.items.as_deref(),
                        mode,
                        map.optional,
                    )?);
                }
                VolumeProjection { secret: Some(secret), .. } => {
                    files.extend(self.secret(
                        namespace,
                        &secret.name,
                        secret.items.as_deref(),
                        mode,
                        secret.optional,
                    )?);
                }
                VolumeProjection { downward_api: Some(downward), .. } => {
                    files.extend(self.downward(downward.items.as_deref().unwrap_or_default(), mode)?);
                }
                _ => return Err("a projected source of this kind is not supported".to_owned()),
            }
        }
        Ok(files)
    }

    fn config_map(
        &self,
        namespace: &str,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<Files, String> {
        let Some(map) = self.cluster.config_map(namespace, name) else {
            return absent(optional, || format!("configmap {name:?} not found"));
        };
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        select(text.chain(binary).collect(), items, mode, optional, self.fs_group())
    }

    fn secret(
        &self,
        namespace: &str,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<Files, String> {
        let Some(secret) = self.cluster.secret(namespace, name) else {
            return absent(optional, || format!("secret {name:?} not found"));
        };
        let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
        select(data, items, mode, optional, self.fs_group())
    }

    fn downward(&self, items: &[DownwardAPIVolumeFile], mode: Option<i32>) -> Result<Files, String> {
        let mut files = Files::new();
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => pod_field(&self.pod, self.address, field)?,
                (None, Some(field)) => {
                    let name = field.container_name.as_deref().unwrap_or_default();
                    let container = self.containers().into_iter().find(|c| c.name == name);
                    resource_field(container.ok_or_else(|| format!("no container named {name:?}"))?, field)?
                }
                (None, None) => return Err(format!("downwardAPI item {:?} names no field", item.path)),
            };
            files.insert(item.path.clone(), entry(text.into_bytes(), item.mode.or(mode), self.fs_group()));
        }
        Ok(files)
    }

    fn empty_dir(&mut self, name: &str, source: &EmptyDirVolumeSource) -> Result<(), String> {
        let memory = source.medium.as_deref() == Some("Memory");
        let path = if memory { self.memory().join("empty").join(name) } else { self.disk().join(name) };
        fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if memory {
            let limit = source.size_limit.as_ref().and_then(|q| parse_quantity(&q.0));
            let options =
                CString::new(format!("mode=0777,size={}", limit.unwrap_or(DEFAULT_MEMORY).max(4096.0)))
                    .map_err(|e| e.to_string())?;
            mount("tmpfs", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
                .map_err(|e| format!("mount a tmpfs at {}: {e}", path.display()))?;
            self.mounted.push(path.clone());
        }
        // Kubernetes gives everyone all rights; where only one user mounts it, that user is enough.
        let owner = self.only_user(name);
        let mode = match (owner, self.fs_group()) {
            (Some(_), None) => 0o700,
            (_, Some(_)) => 0o2777,
            (None, None) => 0o777,
        };
        chown(&path, owner, owner.or(self.fs_group())).map_err(|e| e.to_string())?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|e| e.to_string())?;
        self.sources.insert(name.to_owned(), path);
        Ok(())
    }

    fn host_path(&self, source: &HostPathVolumeSource) -> Result<PathBuf, String> {
        let asked = Path::new(&source.path);
        let kind = source.type_.as_deref().unwrap_or_default();
        let path = asked.canonicalize().map_err(|e| match kind {
            "DirectoryOrCreate" | "FileOrCreate" => {
                format!("hostPath {}: {e}; this node does not make files on the host", source.path)
            }
            _ => format!("hostPath {}: {e}", source.path),
        })?;
        refuse_host_path(&path, self.data.path())?;
        let fits = match kind {
            "Directory" | "DirectoryOrCreate" => path.is_dir(),
            "File" | "FileOrCreate" => path.is_file(),
            "" => path.is_dir() || path.is_file(),
            _ => false,
        };
        if fits {
            Ok(path)
        } else {
            Err(format!("hostPath type check failed: {} is not a {kind}", source.path))
        }
    }

    fn containers(&self) -> Vec<&Container> {
        let spec = self.pod.spec.as_ref();
        spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).collect()
    }

    fn fs_group(&self) -> Option<u32> {
        let group = self.pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
        u32::try_from(group).ok()
    }

    /// The user of a volume if all containers that mount it have the same.
    fn only_user(&self, volume: &str) -> Option<u32> {
        let users: BTreeSet<u32> = self
            .containers()
            .into_iter()
            .filter(|c| c.volume_mounts.iter().flatten().any(|m| m.name == volume))
            .filter_map(|c| credentials(&self.pod, c, self.address).ok())
            .map(|c| c.uid)
            .collect();
        users.first().copied().filter(|_| users.len() == 1)
    }

    /// A container's mounts.
    pub(crate) fn mounts(&self, container: &Container) -> Result<Vec<sandbox::Volume>, String> {
        let mut mounts = Vec::new();
        for wanted in container.volume_mounts.iter().flatten() {
            let source = self
                .sources
                .get(&wanted.name)
                .ok_or_else(|| format!("no volume named {:?} for {}", wanted.name, wanted.mount_path))?;
            if wanted.sub_path_expr.is_some() {
                return Err("subPathExpr is not supported; use subPath".to_owned());
            }
            let source = match wanted.sub_path.as_deref().filter(|path| !path.is_empty()) {
                None => source.clone(),
                Some(sub) => sub_path(source, sub)?,
            };
            mounts.push(sandbox::Volume {
                source,
                target: PathBuf::from(&wanted.mount_path),
                read_only: wanted.read_only == Some(true)
                    || self.written.contains_key(&wanted.name)
                    || self.is_read_only_claim(&wanted.name),
            });
        }
        Ok(mounts)
    }

    fn is_read_only_claim(&self, volume: &str) -> bool {
        let mut claims = self.declared().into_iter().filter(|declared| declared.name == volume);
        claims.any(|volume| volume.persistent_volume_claim.is_some_and(|claim| claim.read_only == Some(true)))
    }

    /// Takes everything away, once no container is left. Blocks for as long as that takes.
    pub(crate) fn remove(&mut self) {
        for path in self.mounted.drain(..) {
            if let Err(error) = unmount(&path, UnmountFlags::DETACH) {
                tracing::warn!(path = %path.display(), %error, "cannot unmount a volume");
            }
        }
        for path in [self.memory(), self.disk()] {
            if let Err(error) = crate::remove::tree(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove volumes");
            }
        }
        self.sources.clear();
        self.written.clear();
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A path inside a volume, with no link leading out of it.
fn sub_path(volume: &Path, sub: &str) -> Result<PathBuf, String> {
    let path = volume.join(sub);
    let resolved = path.canonicalize().map_err(|e| format!("subPath {sub:?}: {e}"))?;
    let root = volume.canonicalize().map_err(|e| e.to_string())?;
    if resolved.starts_with(&root) {
        Ok(resolved)
    } else {
        Err(format!("subPath {sub:?} leads out of the volume"))
    }
}

fn refuse_host_path(path: &Path, data_dir: &Path) -> Result<(), String> {
    let never = NEVER_SHOWN.iter().map(Path::new);
    if path == Path::new("/")
        || path.starts_with(data_dir)
        || data_dir.starts_with(path)
        || never.clone().any(|never| path.starts_with(never) || never.starts_with(path))
    {
        return Err(format!(
            "hostPath {} is not shown to Pods: it holds, or is part of, what isolates them \
             (the data directory, /, /etc, /proc, /sys, /dev, /run, /root, /boot)",
            path.display()
        ));
    }
    Ok(())
}

fn absent(optional: Option<bool>, why: impl FnOnce() -> String) -> Result<Files, String> {
    if optional == Some(true) { Ok(Files::new()) } else { Err(why()) }
}

fn entry(bytes: Vec<u8>, mode: Option<i32>, group: Option<u32>) -> Entry {
    let mode = mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644);
    // fsGroup may always read, as Kubernetes arranges.
    let mode = if group.is_some() { mode | 0o040 } else { mode };
    Entry { bytes, mode, owner: None, group }
}

fn select(
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
    group: Option<u32>,
) -> Result<Files, String> {
    let Some(items) = items else {
        return Ok(data.into_iter().map(|(key, bytes)| (key, entry(bytes, mode, group))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match data.remove(&item.key) {
            Some(bytes) => {
                files.insert(item.path.clone(), entry(bytes, item.mode.or(mode), group));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent key: {}", item.key)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_never_show_the_data_directory_or_what_holds_it() {
        let data = Path::new("/var/lib/maille");
        for path in [
            "/",
            "/var/lib/maille",
            "/var/lib/maille/pods",
            "/var/lib",
            "/var",
            "/proc/1",
            "/run/netns",
            "/root",
        ] {
            assert!(refuse_host_path(Path::new(path), data).is_err(), "{path}");
        }
        for path in ["/srv/web", "/home/me/app", "/var/www", "/opt"] {
            assert!(refuse_host_path(Path::new(path), data).is_ok(), "{path}");
        }
    }

    #[test]
    fn keys_are_selected_renamed_and_missed() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let item = |key: &str, path: &str| KeyToPath {
            key: key.into(),
            path: path.into(),
            mode: Some(0o400),
            ..Default::default()
        };
        let files = select(data.clone(), Some(&[item("b", "x/y")]), None, None, None).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(files["x/y"].mode, 0o400);
        assert!(select(data.clone(), Some(&[item("c", "c")]), None, None, None).is_err());
        assert!(select(data, Some(&[item("c", "c")]), None, Some(true), None).unwrap().is_empty());
    }
}
