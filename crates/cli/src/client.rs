//! The Kubernetes API as the commands use it: a few requests over the `kube` client.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use maille_config::kinds::Kind;
use serde_json::Value;

/// Which API a command talks to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ApiArgs {
    /// Kubeconfig to use; else that of --data-dir, else $KUBECONFIG, else that of the standalone mesh of this machine,
    /// else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one unless given.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Data folder of the standalone mesh; /var/lib/maille-mesh unless given.
    #[arg(long, global = true, value_name = "DIR", env = "MAILLE_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl ApiArgs {
    /// Data folder of the standalone mesh.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.as_deref().unwrap_or(Path::new(crate::DEFAULT_DATA_DIR))
    }
}

/// Which namespace a command is about.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// Namespace; that of the kubeconfig's context unless given.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl NamespaceArgs {
    /// The namespace asked for; an empty one counts as none.
    pub(crate) fn given(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty())
    }

    /// The namespace asked for, or that of the context.
    pub(crate) fn of<'a>(&'a self, api: &'a Api) -> &'a str {
        self.given().unwrap_or_else(|| api.client().default_namespace())
    }
}

/// What a request came back with, if not a success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The API answered with a Status.
    #[error("{message}")]
    Refused {
        /// HTTP status code.
        code: u16,
        /// The Status object's message.
        message: String,
        /// `details.causes`, as (field, message).
        causes: Vec<(String, String)>,
    },
    /// The API could not be asked, or answered with something else.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// Not a source: the message has the whole chain already, and would have it twice.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl ApiError {
    /// Whether the API says that there is no such object.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the object has changed since it was read, or is there already.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }
}

/// A connection to the Kubernetes API.
#[derive(Clone)]
pub(crate) struct Api {
    client: kube::Client,
}

impl Api {
    /// Connects as `args` say.
    pub(crate) async fn connect(args: &ApiArgs) -> Result<Self> {
        let standalone = args.data_dir().join("kubeconfig");
        if args.kubeconfig.is_none() && args.data_dir.is_some() && !standalone.is_file() {
            let folder = args.data_dir().display();
            if std::fs::metadata(&standalone).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
            {
                bail!("the data folder {folder} is root's alone; try it with sudo");
            }
            bail!("no mesh has data folder {folder}: start one with `maille up --data-dir {folder}`");
        }
        // What is said in the call goes before what the environment says.
        let named = args.kubeconfig.clone().or_else(|| args.data_dir.is_some().then(|| standalone.clone()));
        let explicit = named.or_else(|| {
            let from_environment = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
            from_environment.map(PathBuf::from).or_else(|| standalone.is_file().then_some(standalone))
        });
        match explicit {
            Some(path) => Self::from_context(&path, args.context.as_deref()).await,
            None => {
                let inferred = match &args.context {
                    Some(_) => kube::Config::from_kubeconfig(&in_context(args.context.as_deref()))
                        .await
                        .map_err(anyhow::Error::from),
                    None => kube::Config::infer().await.map_err(anyhow::Error::from),
                };
                let config = inferred.map_err(|error| {
                    tracing::debug!(%error, "neither in a cluster nor a kubeconfig of the user");
                    anyhow!(
                        "no mesh to talk to: start one with `maille up`, or name it with --data-dir or --kubeconfig"
                    )
                })?;
                Ok(Self { client: kube::Client::try_from(config)? })
            }
        }
    }

    /// Connects with the kubeconfig at `path`.
    pub(crate) async fn from_file(path: &Path) -> Result<Self> {
        Self::from_context(path, None).await
    }

    async fn from_context(path: &Path, context: Option<&str>) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| match error {
            KubeconfigError::ReadConfig(error, _) => {
                anyhow!("cannot read the kubeconfig {}: {error}", path.display())
            }
            // The parser's own words show lines of the file, and those may be a key's.
            _ => anyhow!("{} is no kubeconfig: it is not the YAML of one", path.display()),
        })?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &in_context(context))
            .await
            .with_context(|| format!("the kubeconfig {} is not usable", path.display()))?;
        Ok(Self { client: kube::Client::try_from(config)? })
    }

    /// Connects with a client that is there.
    pub(crate) fn of(client: kube::Client) -> Self {
        Self { client }
    }

    /// The client itself, for what is no plain request.
    pub(crate) fn client(&self) -> &kube::Client {
        &self.client
    }

    /// GET, answered with JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, "application/json", None).await
    }

    /// GET as a table, Kubernetes' form for people.
    pub(crate) async fn get_table(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::GET, path, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", None)
            .await
    }

    /// POST of a new object.
    pub(crate) async fn create(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.send(Method::POST, path, "application/json", Some(("application/json", object))).await
    }

    /// PUT of an object that exists.
    pub(crate) async fn replace(&self, path: &str, object: &Value) -> Result<Value, ApiError> {
        self.send(Method::PUT, path, "application/json", Some(("application/json", object))).await
    }

    /// JSON merge patch (RFC 7396).
    pub(crate) async fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value, ApiError> {
        self.send(Method::PATCH, path, "application/json", Some(("application/merge-patch+json", patch)))
            .await
    }

    /// DELETE.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ApiError> {
        self.send(Method::DELETE, path, "application/json", None).await
    }

    /// GET of a stream of bytes, handed to `sink` as it arrives.
    pub(crate) async fn stream(
        &self,
        path: &str,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<(), ApiError> {
        let mut body = self.response(Method::GET, path, "*/*", None).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| anyhow!("the stream broke: {error}"))?;
            if let Some(data) = frame.data_ref() {
                sink(data)?;
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ApiError> {
        let bytes = self.bytes(method, path, accept, body).await?;
        Ok(serde_json::from_slice(&bytes).context("the API answered with something that is no JSON")?)
    }

    async fn bytes(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<bytes::Bytes, ApiError> {
        let response = self.response(method, path, accept, body).await?;
        let collected = response.into_body().collect().await;
        Ok(collected.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes())
    }

    async fn response(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<http::Response<Body>, ApiError> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, accept);
        let bytes = match body {
            Some((content_type, value)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                serde_json::to_vec(value).context("an object cannot be written as JSON")?
            }
            None => Vec::new(),
        };
        let request = request.body(Body::from(bytes)).context("not a path of the API")?;
        let response = self.client.send(request).await.map_err(|error| {
            anyhow!(innermost(&error)).context("cannot reach the API (does the mesh run?)")
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let collected = response.into_body().collect().await;
        let bytes = collected.map(|body| body.to_bytes()).unwrap_or_default();
        Err(refusal(code, &bytes))
    }
}

fn in_context(context: Option<&str>) -> KubeConfigOptions {
    KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() }
}

/// Reads a Kubernetes Status; a body that is none becomes the message as it stands.
fn refusal(code: u16, body: &[u8]) -> ApiError {
    let status: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = match status["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("HTTP {code}: {}", String::from_utf8_lossy(body).trim()),
    };
    let causes = status["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|cause| (text(&cause["field"]), text(&cause["message"])))
        .collect();
    ApiError::Refused { code, message, causes }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The path of a collection of objects: of one namespace, or of all.
pub(crate) fn collection_path(kind: &Kind, version: &str, namespace: Option<&str>) -> String {
    let base = match kind.group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    match namespace.filter(|_| kind.namespaced) {
        Some(namespace) => format!("{base}/namespaces/{namespace}/{}", kind.plural),
        None => format!("{base}/{}", kind.plural),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_with_its_causes() {
        let body = br#"{"kind":"Status","message":"invalid","details":{"causes":[{"field":"spec.x","message":"bad"}]}}"#;
        let ApiError::Refused { code, message, causes } = refusal(422, body) else {
            panic!("a refusal");
        };
        assert_eq!((code, message.as_str()), (422, "invalid"));
        assert_eq!(causes, [("spec.x".to_owned(), "bad".to_owned())]);
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_is_not_shown() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "users:\n- user: {client-key-data: SECRET\n  broken").expect("writable");
        let Err(error) = Api::from_file(file.path()).await else { panic!("it is broken") };
        let text = format!("{error:#}");
        assert!(text.contains("is no kubeconfig") && !text.contains("SECRET"), "{text}");
    }

    #[test]
    fn a_failure_is_told_once() {
        let failed = ApiError::from(anyhow!("connection refused").context("cannot reach the API"));
        assert_eq!(format!("{:#}", anyhow::Error::from(failed)), "cannot reach the API: connection refused");
    }

    #[test]
    fn an_answer_that_is_no_status_is_shown_as_it_is() {
        assert_eq!(refusal(502, b"bad gateway\n").to_string(), "HTTP 502: bad gateway");
    }
}
