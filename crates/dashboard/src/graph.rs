//! The graph of one view: nodes in namespaces, edges by pair and verdict, bounded, with the figures of the summary.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use maille_core::ROOT_NAMESPACE;

use crate::conversation::{Conversation, Key, Verdict};
use crate::objects::{Inventory, Workload};
use crate::query::{Show, ViewQuery};

/// Nodes in the picture; those beyond are counted.
const MOST_NODES: usize = 200;
/// Edges in the picture.
const MOST_EDGES: usize = 400;
/// Namespaces that serve the mesh itself; their workloads are shown only where they talk.
pub(crate) const OWN: [&str; 2] = [ROOT_NAMESPACE, "kube-system"];

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeKind {
    /// A workload of the cluster, with its Pods.
    Workload(Workload),
    /// A workload or service that flows name, and the cluster does not (any more).
    Named,
    /// An address, host or identity outside of every namespace.
    Outside,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) key: Key,
    pub(crate) kind: NodeKind,
    pub(crate) has_traffic: bool,
}

impl Node {
    /// Whether it runs without a sidecar, and so without an identity; `None` if that is not known.
    pub(crate) fn is_bare(&self) -> Option<bool> {
        match self.kind {
            NodeKind::Workload(Workload { pods: 0, .. }) | NodeKind::Named => None,
            NodeKind::Workload(w) => Some(w.with_sidecar < w.pods),
            NodeKind::Outside => None,
        }
    }
}

/// All that goes from one node to another with the same verdict.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    /// Indices of nodes.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) verdict: Verdict,
    pub(crate) per_s: f64,
    pub(crate) last_seen_ms: u64,
    /// The policy's name, or what else decided, of a refusal.
    pub(crate) badge: Option<String>,
    /// For those who point at it.
    pub(crate) title: String,
}

/// Figures of the whole mesh, whatever is shown of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Summary {
    pub(crate) workloads: usize,
    pub(crate) namespaces: usize,
    pub(crate) bare: usize,
    /// Calls let through in a second.
    pub(crate) allowed_per_s: f64,
    /// Of those, what went over mutual TLS: 0 to 1; `None` without calls.
    pub(crate) mtls_share: Option<f64>,
    pub(crate) plaintext_pairs: usize,
    pub(crate) refused_pairs: usize,
    pub(crate) refused_per_s: f64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) more_nodes: usize,
    pub(crate) more_edges: usize,
}

impl Graph {
    /// The picture's graph of the conversations that are shown.
    pub(crate) fn of(shown: &[&Conversation], inventory: &Inventory, query: &ViewQuery) -> Self {
        let mut pairs: BTreeMap<(Verdict, &Key, &Key), Vec<&Conversation>> = BTreeMap::new();
        for c in shown {
            pairs.entry((c.verdict, &c.from, &c.to)).or_default().push(c);
        }
        // Refusals first, then plaintext, then by rate: what is left out beyond the bound is what tells least.
        let mut ranked: Vec<_> = pairs
            .into_iter()
            .map(|(pair, list)| {
                let per_s: f64 = list.iter().map(|c| c.per_s).sum();
                (pair, per_s, list)
            })
            .collect();
        ranked.sort_by(|a, b| a.0.0.cmp(&b.0.0).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));

        let mut keys: BTreeSet<Key> = BTreeSet::new();
        let mut kept = Vec::new();
        let mut left_out: BTreeSet<&Key> = BTreeSet::new();
        let mut more_edges = 0;
        for ((verdict, from, to), per_s, list) in ranked {
            let new = usize::from(!keys.contains(from)) + usize::from(from != to && !keys.contains(to));
            if kept.len() >= MOST_EDGES || keys.len() + new > MOST_NODES {
                more_edges += 1;
                left_out.extend([from, to]);
                continue;
            }
            keys.insert(from.clone());
            keys.insert(to.clone());
            kept.push((verdict, from, to, per_s, list));
        }
        left_out.retain(|key| !keys.contains(*key));
        let mut more_nodes = left_out.len();
        let with_traffic = keys.clone();
        // A view of the refused alone is about those who are.
        if query.show == Show::All {
            for (namespace, name) in inventory.workloads.keys() {
                let wanted = query.namespace.as_ref().is_none_or(|ns| ns == namespace);
                let key = Key::new(namespace.clone(), name.clone());
                if !wanted
                    || OWN.contains(&namespace.as_str())
                    || keys.contains(&key)
                    || left_out.contains(&key)
                {
                    continue;
                }
                if keys.len() < MOST_NODES {
                    keys.insert(key);
                } else {
                    more_nodes += 1;
                }
            }
        }
        let index: BTreeMap<&Key, usize> = keys.iter().enumerate().map(|(at, key)| (key, at)).collect();
        let edges = kept
            .into_iter()
            .filter_map(|(verdict, from, to, per_s, list)| {
                Some(Edge {
                    from: *index.get(from)?,
                    to: *index.get(to)?,
                    verdict,
                    per_s,
                    last_seen_ms: list.iter().map(|c| c.last_seen_ms).max().unwrap_or(0),
                    badge: badge(verdict, &list),
                    title: title(verdict, from, to, &list),
                })
            })
            .collect();
        let nodes = keys
            .iter()
            .map(|key| Node {
                kind: match inventory.workloads.get(&(key.namespace.clone(), key.name.clone())) {
                    Some(workload) => NodeKind::Workload(*workload),
                    None if key.namespace.is_empty() => NodeKind::Outside,
                    None => NodeKind::Named,
                },
                has_traffic: with_traffic.contains(key),
                key: key.clone(),
            })
            .collect();
        Self { nodes, edges, more_nodes, more_edges }
    }
}

fn badge(verdict: Verdict, list: &[&Conversation]) -> Option<String> {
    if matches!(verdict, Verdict::Mtls | Verdict::Plaintext) {
        return None;
    }
    let names: BTreeSet<String> = list.iter().filter_map(|c| c.badge()).collect();
    let first = list.iter().max_by(|a, b| a.per_s.total_cmp(&b.per_s))?.badge()?;
    Some(if names.len() > 1 { format!("{first} +{}", names.len() - 1) } else { first })
}

fn title(verdict: Verdict, from: &Key, to: &Key, list: &[&Conversation]) -> String {
    let what = match verdict {
        Verdict::Mtls => "allowed, mutual TLS",
        Verdict::Plaintext => "allowed, plaintext",
        Verdict::Refused => "refused",
        Verdict::Failed => "unreachable",
    };
    let mut text = format!("{} to {}: {what}", from.label(), to.label());
    // What refuses now comes before what did earlier.
    let mut latest_first = list.to_vec();
    latest_first.sort_by_key(|c| Reverse(c.last_seen_ms));
    let mut causes: Vec<String> = Vec::new();
    for cause in latest_first.iter().filter_map(|c| Some(format!("port {}: {}", c.port, c.headline()?))) {
        if causes.len() < 4 && !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    for cause in causes {
        text.push_str("; ");
        text.push_str(&cause);
    }
    text
}

impl Summary {
    /// The figures of everything seen within the view's time.
    pub(crate) fn of(
        conversations: &[Conversation],
        inventory: &Inventory,
        query: &ViewQuery,
        now_ms: u64,
    ) -> Self {
        let everything = ViewQuery { window: query.window, ..ViewQuery::default() };
        let recent = || conversations.iter().filter(|c| everything.wants(c, now_ms));
        let pairs = |wanted: Verdict| {
            recent().filter(|c| c.verdict == wanted).map(|c| (&c.from, &c.to)).collect::<BTreeSet<_>>().len()
        };
        let per_s = |wanted: Verdict| recent().filter(|c| c.verdict == wanted).map(|c| c.per_s).sum::<f64>();
        let workloads = || inventory.workloads.iter().filter(|((ns, _), _)| !OWN.contains(&ns.as_str()));
        let (mtls, plaintext) = (per_s(Verdict::Mtls), per_s(Verdict::Plaintext));
        let allowed = mtls + plaintext;
        Self {
            workloads: workloads().count(),
            namespaces: workloads().map(|((ns, _), _)| ns).collect::<BTreeSet<_>>().len(),
            bare: workloads().filter(|(_, w)| w.with_sidecar < w.pods).count(),
            allowed_per_s: allowed,
            mtls_share: (allowed > 0.0).then(|| mtls / allowed),
            plaintext_pairs: pairs(Verdict::Plaintext),
            refused_pairs: pairs(Verdict::Refused),
            refused_per_s: per_s(Verdict::Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::conversations;
    use crate::flows;

    fn talk(count: usize) -> Vec<Conversation> {
        let flow = |n: usize| {
            serde_json::json!({
                "reporter": "DESTINATION", "decision": if n.is_multiple_of(10) { "DENIED" } else { "ALLOWED" }, "mtls": true,
                "source": {"namespace": format!("ns{}", n % 7), "workloadName": format!("from{n}")},
                "destination": {"namespace": "all", "workloadName": format!("to{}", n % 50)},
                "port": 80, "protocol": "HTTP", "requests": 60, "lastSeenMs": 1000
            })
        };
        let body = serde_json::json!({"flows": (0..count).map(flow).collect::<Vec<_>>()}).to_string();
        let flows = flows::read(body.as_bytes()).expect("flows");
        conversations(&flows, &flows, 60.0, &Inventory::default(), 1000)
    }

    #[test]
    fn the_picture_is_bounded_and_keeps_the_refused() {
        let all = talk(1000);
        let shown: Vec<&Conversation> = all.iter().collect();
        let graph = Graph::of(&shown, &Inventory::default(), &ViewQuery::default());
        assert!(graph.nodes.len() <= MOST_NODES && graph.edges.len() <= MOST_EDGES);
        assert_eq!(graph.edges.iter().filter(|e| e.verdict == Verdict::Refused).count(), 100);
        assert_eq!(graph.edges.len() + graph.more_edges, 1000);
        assert!(graph.more_nodes > 0);
    }

    #[test]
    fn what_refuses_now_is_said_before_what_did_earlier() {
        let flow = |decision: &str, at: u64| {
            let reason = if decision == "DENIED" { "no ALLOW rule matches" } else { "certificate refused" };
            serde_json::json!({
                "reporter": "DESTINATION", "decision": decision, "mtls": true, "reason": reason,
                "source": {"namespace": "shop", "workloadName": "web"},
                "destination": {"namespace": "shop", "workloadName": "cart"},
                "port": 80, "protocol": "HTTP", "requests": 1, "firstSeenMs": at, "lastSeenMs": at
            })
        };
        for (earlier, later, said) in [
            ("REFUSED_TLS", "DENIED", "port 80: no ALLOW rule matches; port 80: TLS refused"),
            ("DENIED", "REFUSED_TLS", "port 80: TLS refused; port 80: no ALLOW rule matches"),
        ] {
            let all = [flow(earlier, 1000), flow(later, 2000)];
            let flows = flows::read(serde_json::json!({"flows": all}).to_string().as_bytes()).expect("flows");
            let all = conversations(&flows, &flows, 60.0, &Inventory::default(), 2000);
            let shown: Vec<&Conversation> = all.iter().collect();
            let graph = Graph::of(&shown, &Inventory::default(), &ViewQuery::default());
            assert_eq!(graph.edges[0].title, format!("shop/web to shop/cart: refused; {said}"));
        }
    }

    #[test]
    fn the_share_of_mutual_tls_counts_what_was_let_through() {
        let summary = Summary::of(&talk(20), &Inventory::default(), &ViewQuery::default(), 1000);
        assert_eq!((summary.refused_pairs, summary.mtls_share), (2, Some(1.0)));
        let none = Summary::of(&[], &Inventory::default(), &ViewQuery::default(), 1000);
        assert_eq!(none.mtls_share, None);
    }
}
