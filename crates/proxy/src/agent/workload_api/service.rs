//! The five calls of the SPIFFE Workload API (reference mtls 6.3).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::{Stream, stream};
use maille_core::Identity;
use maille_policy::authentication::verify_jwt_svid;
use maille_proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApi;
use maille_proto::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::{Request, Response, Status};

use super::believed::{Believed, BelievedWatch, domain_id};
use super::supply::{Held, Want};
use super::{Sources, either_changed, x509};

/// See the module's text.
pub(super) struct WorkloadService(pub(super) Sources);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Refuses who does not say that it means this API: browsers and the like can be made to call, but not with this header
/// (SPIFFE Workload Endpoint section 3, SF-4).
pub(super) fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    match request.metadata().get("workload.spiffe.io") {
        Some(value) if value == "true" => Ok(request),
        _ => Err(Status::invalid_argument("metadata 'workload.spiffe.io: true' is missing")),
    }
}

impl Sources {
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| Status::resource_exhausted("too many calls at once; close some streams"))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadService {
    type FetchX509SVIDStream = Answers<X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        _: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let (place, want) = (self.0.place()?, self.0.supply.want());
        self.0.supply.first().await?;
        let watching = SvidStream {
            held: self.0.supply.watch(),
            believed: self.0.believed.clone(),
            sent: None,
            _want: want,
            _place: place,
        };
        // An error ends the stream; callers come back.
        let answers = stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            match watching.next().await? {
                Ok(message) => Some((Ok(message), Some(watching))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    type FetchX509BundlesStream = Answers<X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let place = self.0.place()?;
        if x509::bundles(&self.0.believed.borrow()).is_none() {
            return Err(Status::unavailable("the proxy has no roots yet"));
        }
        Ok(Response::new(each_change(self.0.believed.clone(), place, x509::bundles)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let _place = self.0.place()?;
        let JwtsvidRequest { audience, spiffe_id } = request.into_inner();
        let token = self.0.tokens.fetch(audience, &spiffe_id).await?;
        let svid =
            Jwtsvid { spiffe_id: token.identity.uri(), svid: token.text.to_string(), hint: String::new() };
        Ok(Response::new(JwtsvidResponse { svids: vec![svid] }))
    }

    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let place = self.0.place()?;
        if jwt_bundles(&self.0.believed.borrow()).is_none() {
            return Err(Status::unavailable("the control plane has told no keys for JWT-SVIDs yet"));
        }
        Ok(Response::new(each_change(self.0.believed.clone(), place, jwt_bundles)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let ValidateJwtsvidRequest { audience, svid } = request.into_inner();
        if audience.is_empty() || svid.is_empty() {
            return Err(Status::invalid_argument("audience and token must be given"));
        }
        let believed = self.0.believed.borrow().clone();
        let keys = |domain: &_| believed.keys.get(domain).map(|set| set.as_ref());
        let good = verify_jwt_svid(&svid, &audience, SystemTime::now(), keys).map_err(|why| no_good(&why))?;
        if let Ok(identity) = Identity::parse_uri(&good.id)
            && let Some(why) = believed.revoked.refuses_token(&identity, good.issued())
        {
            return Err(no_good(&why));
        }
        Ok(Response::new(ValidateJwtsvidResponse {
            spiffe_id: good.id,
            claims: Some(as_struct(good.claims)),
        }))
    }
}

fn no_good(why: &dyn std::fmt::Display) -> Status {
    Status::invalid_argument(format!("the JWT-SVID is not good: {why}"))
}

struct SvidStream {
    held: watch::Receiver<Held>,
    believed: BelievedWatch,
    sent: Option<X509svidResponse>,
    _want: Want,
    _place: OwnedSemaphorePermit,
}

impl SvidStream {
    /// The next state that differs from the one sent; `None` when there will be none. An error once the workload has lost
    /// its right (SPIFFE Workload API section 5.1).
    async fn next(&mut self) -> Option<Result<X509svidResponse, Status>> {
        loop {
            let held = self.held.borrow_and_update().clone();
            if let Some(status) = held.denied() {
                return Some(Err(status));
            }
            let credential = held.credential;
            let believed = self.believed.borrow_and_update().clone();
            let message = credential.and_then(|credential| x509::svids(&credential, &believed));
            if let Some(message) = message.filter(|message| self.sent.as_ref() != Some(message)) {
                self.sent = Some(message.clone());
                return Some(Ok(message));
            }
            if !either_changed(&mut self.held, &mut self.believed).await {
                return None;
            }
        }
    }
}

/// What `make` makes of what is believed, at once and whenever it comes to something else.
fn each_change<T: Clone + PartialEq + Send + 'static>(
    believed: BelievedWatch,
    place: OwnedSemaphorePermit,
    make: fn(&Believed) -> Option<T>,
) -> Answers<T> {
    let first = (believed, None::<T>, place);
    Box::pin(stream::unfold(first, move |(mut believed, sent, place)| async move {
        loop {
            let message = make(&believed.borrow_and_update());
            if let Some(message) = message.filter(|message| sent.as_ref() != Some(message)) {
                return Some((Ok(message.clone()), (believed, Some(message), place)));
            }
            believed.changed().await.ok()?;
        }
    }))
}

fn jwt_bundles(believed: &Believed) -> Option<JwtBundlesResponse> {
    let bundles: HashMap<_, _> =
        believed.keys.iter().map(|(domain, set)| (domain_id(domain), set.to_vec())).collect();
    (!bundles.is_empty()).then_some(JwtBundlesResponse { bundles })
}

/// Depth is bounded by the reader of the token.
fn as_struct(claims: Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: claims.into_iter().map(|(name, value)| (name, as_value(value))).collect() }
}

fn as_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(as_value).collect() })
        }
        Value::Object(members) => Kind::StructValue(as_struct(members)),
    };
    prost_types::Value { kind: Some(kind) }
}
