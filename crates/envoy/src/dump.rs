//! One proxy, in Envoy's shapes: made of what a Maille proxy shows, or read from a dump of Envoy's own.

use maille_proto::facts::ConfigDump;
use serde_json::{Map, Value, json};

use crate::address::type_url;
use crate::known::Known;
use crate::{bootstrap, case, clusters, endpoints, listeners, routes, secrets};

/// Every section holds the resources themselves, with protobuf's names in `camelCase`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dump {
    /// `Bootstrap`.
    pub bootstrap: Value,
    /// `Cluster`s.
    pub clusters: Vec<Value>,
    /// `Listener`s.
    pub listeners: Vec<Value>,
    /// `RouteConfiguration`s.
    pub routes: Vec<Value>,
    /// `ClusterStatus`es, which `/clusters?format=json` lists.
    pub endpoints: Vec<Value>,
    /// `DynamicSecret`s in use, `default` first.
    pub secrets: Vec<Value>,
    /// `DynamicSecret`s that are not there yet.
    pub warming_secrets: Vec<Value>,
    /// What mutual TLS negotiates, and by which revocations it judges; null where that is not known, as of Envoy.
    pub tls: Value,
}

/// Why text is no dump.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read at all.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is something else.
    #[error(
        "no configuration dump: it has neither the field 'configs' of Envoy's /config_dump nor the field 'facts' of \
         Maille's"
    )]
    Unknown,
}

impl Dump {
    /// What a Maille proxy shows.
    pub fn of_proxy(dump: &ConfigDump) -> Self {
        let nothing = Default::default();
        let facts = dump.facts.as_ref().unwrap_or(&nothing);
        let known = Known::of(dump, facts);
        Self {
            bootstrap: bootstrap::bootstrap(&known),
            clusters: clusters::clusters(&known),
            listeners: listeners::listeners(&known),
            routes: routes::routes(&known),
            endpoints: endpoints::cluster_statuses(&known),
            secrets: secrets::active(&known),
            warming_secrets: Vec::new(),
            tls: secrets::tls(&known),
        }
    }

    /// Reads a dump of either kind: Envoy's (`configs`, with names in either case) or Maille's (`facts`).
    pub fn read(text: &[u8]) -> Result<Self, ReadError> {
        let value: Value = serde_json::from_slice(text)?;
        if value.get("facts").is_some() {
            return Ok(Self::of_proxy(&serde_json::from_value(value)?));
        }
        // The answer of `/clusters?format=json`, or of one masked section.
        let value = case::to_camel(value);
        let sections = match (value["configs"].as_array(), value.get("clusterStatuses")) {
            (Some(sections), _) => sections.clone(),
            (None, Some(_)) => vec![value],
            (None, None) if value.get("dynamicActiveSecrets").is_some() => vec![value],
            (None, None) => return Err(ReadError::Unknown),
        };
        let mut dump = Self::default();
        for section in sections {
            dump.add(&section);
        }
        Ok(dump)
    }

    /// Adds one section of Envoy's dump; sections of other kinds are left out.
    fn add(&mut self, section: &Value) {
        let list = |name: &str| section[name].as_array().cloned().unwrap_or_default();
        let inner = |name: &str, path: &str| {
            let found = list(name).into_iter().filter_map(|item| item.pointer(path).cloned());
            found.collect::<Vec<_>>()
        };
        if let Some(bootstrap) = section.get("bootstrap") {
            self.bootstrap = bootstrap.clone();
        }
        for name in ["staticClusters", "dynamicActiveClusters", "dynamicWarmingClusters"] {
            self.clusters.extend(inner(name, "/cluster"));
        }
        self.listeners.extend(inner("staticListeners", "/listener"));
        self.listeners.extend(inner("dynamicListeners", "/activeState/listener"));
        for name in ["staticRouteConfigs", "dynamicRouteConfigs"] {
            self.routes.extend(inner(name, "/routeConfig"));
        }
        self.endpoints.extend(list("clusterStatuses"));
        for name in ["staticEndpointConfigs", "dynamicEndpointConfigs"] {
            self.endpoints.extend(inner(name, "/endpointConfig").iter().map(of_assignment));
        }
        if let Some(tls) = section.get("tls") {
            self.tls = tls.clone();
        }
        self.secrets.extend(list("dynamicActiveSecrets"));
        self.warming_secrets.extend(list("dynamicWarmingSecrets"));
    }

    /// Envoy's `/config_dump?include_eds=true`, with names in `snake_case` as its admin port writes them.
    pub fn to_config_dump(&self) -> Value {
        let wrapped = |field: &str, kind: &str, items: &[Value]| {
            let typed = |item: &Value| json!({field: with_type(item, kind)});
            items.iter().map(typed).collect::<Vec<_>>()
        };
        let listener_type = "envoy.config.listener.v3.Listener";
        let listeners: Vec<_> = self
            .listeners
            .iter()
            .map(|listener| {
                json!({"name": listener["name"], "activeState": {"listener": with_type(listener, listener_type)}})
            })
            .collect();
        let cluster_type = "envoy.config.cluster.v3.Cluster";
        let route_type = "envoy.config.route.v3.RouteConfiguration";
        let endpoint_type = "envoy.config.endpoint.v3.ClusterLoadAssignment";
        let assignments: Vec<_> = self.endpoints.iter().map(to_assignment).collect();
        case::to_snake(json!({"configs": [
            section("BootstrapConfigDump", json!({"bootstrap": self.bootstrap})),
            section(
                "ClustersConfigDump",
                json!({"dynamicActiveClusters": wrapped("cluster", cluster_type, &self.clusters)}),
            ),
            section(
                "EndpointsConfigDump",
                json!({"dynamicEndpointConfigs": wrapped("endpointConfig", endpoint_type, &assignments)}),
            ),
            section("ListenersConfigDump", json!({"dynamicListeners": listeners})),
            section("ScopedRoutesConfigDump", json!({})),
            section(
                "RoutesConfigDump",
                json!({"dynamicRouteConfigs": wrapped("routeConfig", route_type, &self.routes)}),
            ),
            section("SecretsConfigDump", self.secret_section()),
        ]}))
    }

    /// What `proxy-config secret -o json` prints: Envoy's section, and what Maille has beside it.
    pub fn secrets_shown(&self) -> Value {
        let mut section = self.secret_section();
        if let Some(fields) = section.as_object_mut().filter(|_| !self.tls.is_null()) {
            fields.insert("tls".to_owned(), self.tls.clone());
        }
        section
    }

    /// Envoy's `SecretsConfigDump`.
    pub fn secret_section(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("dynamicActiveSecrets".to_owned(), json!(self.secrets));
        if !self.warming_secrets.is_empty() {
            fields.insert("dynamicWarmingSecrets".to_owned(), json!(self.warming_secrets));
        }
        Value::Object(fields)
    }
}

fn section(name: &str, content: Value) -> Value {
    with_type(&content, &format!("envoy.admin.v3.{name}"))
}

fn with_type(message: &Value, kind: &str) -> Value {
    let mut fields = Map::new();
    fields.insert("@type".to_owned(), json!(type_url(kind)));
    for (name, value) in message.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
    }
    Value::Object(fields)
}

/// `ClusterLoadAssignment` of a `ClusterStatus`.
fn to_assignment(status: &Value) -> Value {
    let hosts = status["hostStatuses"].as_array().into_iter().flatten().map(|host| {
        json!({
            "endpoint": {"address": host["address"]},
            "healthStatus": host["healthStatus"]["edsHealthStatus"],
            "loadBalancingWeight": host["weight"]
        })
    });
    json!({"clusterName": status["name"], "endpoints": [{"lbEndpoints": hosts.collect::<Vec<_>>()}]})
}

fn of_assignment(assignment: &Value) -> Value {
    let localities = assignment["endpoints"].as_array().into_iter().flatten();
    let hosts = localities.flat_map(|locality| locality["lbEndpoints"].as_array().into_iter().flatten()).map(
        |host| {
            json!({
                "address": host["endpoint"]["address"],
                "healthStatus": {"edsHealthStatus": host["healthStatus"].as_str().unwrap_or("UNKNOWN")},
                "weight": host["loadBalancingWeight"].as_u64().unwrap_or(1)
            })
        },
    );
    json!({"name": assignment["clusterName"], "hostStatuses": hosts.collect::<Vec<_>>()})
}
