//! The API as people use it: with a real kubectl, over TLS.

mod support;

use support::{Server, eventually, kubectl};

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: production, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: production}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: production}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: production}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      serviceAccountName: cart
      containers:
      - name: cart
        image: shop
        command: [maille, shop]
        env: [{name: A, value: "1"}]
        ports: [{containerPort: 8080}]
        resources: {limits: {cpu: 100m}}
        readinessProbe: {httpGet: {path: /healthz, port: 8080}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: production}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: production}
spec:
  selector: {matchLabels: {app: cart}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/production/sa/frontend"]}}]
"#;

#[test]
fn apply_twice_creates_and_then_changes_nothing() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    let first = server.apply(SHOP);
    assert_eq!(first.matches(" created").count(), 6, "{first}");
    let again = server.apply(SHOP);
    assert_eq!(again.matches(" unchanged").count(), 6, "{again}");
    let changed = server
        .apply(&SHOP.replace("value: \"1\"", "value: \"2\"").replace("mode: STRICT", "mode: PERMISSIVE"));
    assert_eq!(changed.matches(" configured").count(), 2, "{changed}");
    let path = "jsonpath={.spec.template.spec.containers[0].env[0].value} {.metadata.generation}";
    assert_eq!(server.kubectl(&["get", "deploy", "cart", "-n", "production", "-o", path]), "2 2");
    // A list's item that is left out goes.
    server.apply(&SHOP.replace("        env: [{name: A, value: \"1\"}]\n", ""));
    let path = "jsonpath={.spec.template.spec.containers[0].env}";
    assert_eq!(server.kubectl(&["get", "deploy", "cart", "-n", "production", "-o", path]), "");
}

#[test]
fn tables_yaml_and_describe_read_as_in_kubernetes() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SHOP);
    let heads = |kind: &str| -> Vec<String> {
        let table = server.kubectl(&["get", kind, "-n", "production", "-o", "wide"]);
        table
            .lines()
            .next()
            .unwrap_or_default()
            .split("  ")
            .map(str::trim)
            .filter(|h| !h.is_empty())
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(heads("pa"), ["NAME", "MODE", "AGE"]);
    assert_eq!(heads("authorizationpolicies"), ["NAME", "ACTION", "AGE"]);
    assert_eq!(heads("svc"), ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]);
    assert_eq!(
        heads("deploy"),
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    server.apply("{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: default}, spec: {containers: [{name: a, image: x}]}}");
    let pods = server.kubectl(&["get", "pods", "-o", "wide"]);
    assert!(pods.starts_with("NAME"), "{pods}");
    for head in ["READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"] {
        assert!(pods.lines().next().unwrap_or_default().contains(head), "{pods}");
    }
    assert!(pods.contains("0/1") && pods.contains("Pending"), "{pods}");
    let described = server.kubectl(&["describe", "pod", "one"]);
    for part in ["Service Account:  default", "kube-api-access-", "QoS Class:", "Events:"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let described = server.kubectl(&["describe", "svc,deploy,pa,ap,sa", "-n", "production"]);
    for part in
        ["StrategyType:           RollingUpdate", "TargetPort:               8080/TCP", "Mode:  STRICT"]
    {
        assert!(described.contains(part), "{part}: {described}");
    }
    assert!(server.kubectl(&["get", "ns", "production", "-o", "yaml"]).contains("istio-injection: enabled"));
    assert!(server.kubectl(&["get", "all", "-A"]).contains("service/kubernetes"));
    let old = server.kubectl(&[
        "get",
        "peerauthentications.v1beta1.security.istio.io",
        "-n",
        "production",
        "-o",
        "json",
    ]);
    assert!(old.contains("\"apiVersion\": \"security.istio.io/v1beta1\""), "{old}");
}

#[test]
fn the_everyday_commands_work() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SHOP);
    let run = |line: &str| {
        let mut arguments = vec!["-n", "production"];
        arguments.extend(line.split(' '));
        server.kubectl(&arguments)
    };
    let replicas = || run("get deploy cart -o jsonpath={.spec.replicas}");
    run("scale deploy cart --replicas=3");
    assert_eq!(replicas(), "3");
    run("patch deploy cart --subresource=scale --type=merge -p {\"spec\":{\"replicas\":4}}");
    assert_eq!(replicas(), "4");
    run("label svc cart tier=back");
    run("annotate svc cart note=x");
    assert!(run("get svc -l tier=back,!nothing -o name").contains("service/cart"));
    assert_eq!(run("get svc -l tier!=back -o name"), "");
    assert!(run("get svc --field-selector metadata.name=cart -o name").contains("cart"));
    run(
        "patch pa default --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/mtls/mode\",\"value\":\"DISABLE\"}]",
    );
    assert_eq!(run("get pa default -o jsonpath={.spec.mtls.mode}"), "DISABLE");
    run("set image deploy/cart cart=shop:2");
    run("set env deploy/cart B=2");
    assert!(run("get deploy cart -o jsonpath={.spec.template.spec.containers[0].env}").contains("\"B\""));
    run("rollout restart deploy/cart");
    run("create configmap settings --from-literal=a=b");
    run("create secret generic hidden --from-literal=p=q");
    assert_eq!(run("get secret hidden -o jsonpath={.data.p}"), "cQ==");
    run("create deployment web --image=nginx --port=80 --replicas=0");
    run("expose deploy web --port 90");
    assert!(run("get svc web -o jsonpath={.spec.clusterIP}").starts_with("10.96."));
    assert_eq!(run("create token cart --duration 20m").trim().split('.').count(), 3);
    assert_eq!(run("auth can-i create pods").trim(), "yes");
    assert!(run("auth whoami --as system:serviceaccount:shop:cart").contains("system:serviceaccounts:shop"));
    assert!(
        !run("auth whoami --as jane -o yaml").contains("masters"),
        "nothing of the administrator's is left"
    );
    assert!(run("auth whoami").contains("kubernetes-admin"));
    assert!(
        run("explain pod.spec.containers.readinessProbe.httpGet.path")
            .contains("Path to access on the HTTP server")
    );
    assert!(run("explain authorizationpolicies.spec.rules.from.source").contains("principals"));
    assert!(run("api-resources").contains("peerauthentications"));
    assert!(run("get --raw /readyz").contains("ok"));
}

#[test]
fn server_side_apply_merges_and_conflicts() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    let apply = |manager: &str, data: &str, force: bool| {
        let yaml = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: x, namespace: default}}, data: {data}}}"
        );
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", &manager, "-f", "-"];
        if force {
            arguments.push("--force-conflicts");
        }
        server.try_kubectl(&arguments, &yaml)
    };
    let data = || server.kubectl(&["get", "cm", "x", "-o", "jsonpath={.data}"]);
    assert!(apply("one", "{a: \"1\", b: \"1\"}", false).0);
    assert!(apply("two", "{c: \"2\"}", false).0);
    let (ok, _, err) = apply("two", "{a: \"2\", c: \"2\"}", false);
    assert!(!ok && err.contains("conflict with \"one\": .data.a"), "{err}");
    assert!(apply("two", "{a: \"2\", c: \"2\"}", true).0);
    assert!(apply("one", "{b: \"3\"}", false).0);
    assert_eq!(data(), r#"{"a":"2","b":"3","c":"2"}"#);
    let (ok, out, err) = apply("two", "{}", false);
    assert!(ok, "{out}{err}");
    assert_eq!(data(), r#"{"b":"3"}"#);
}

#[test]
fn deletion_waits_for_what_hangs_on_it() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SHOP);
    // Contents go with their namespace.
    server.kubectl(&["delete", "ns", "production", "--wait", "--timeout=15s"]);
    assert_eq!(server.kubectl(&["get", "svc,deploy,pa,ap,sa,cm", "-n", "production", "-o", "name"]), "");
    // Dependents go with their owner.
    let owner = "{apiVersion: v1, kind: ConfigMap, metadata: {name: owner, namespace: default}}";
    server.apply(owner);
    let uid = server.kubectl(&["get", "cm", "owner", "-o", "jsonpath={.metadata.uid}"]);
    for name in ["kept", "lost"] {
        server.apply(&format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: default, ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: owner, uid: {uid}}}]}}}}"
        ));
    }
    server.kubectl(&["delete", "cm", "owner", "--cascade=foreground", "--timeout=15s"]);
    let left = server.kubectl(&["get", "cm", "-o", "name"]);
    assert!(!left.contains("owner") && !left.contains("lost"), "{left}");
    // A finalizer holds an object.
    server.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: default, finalizers: [example.com/hold]}}");
    server.kubectl(&["delete", "cm", "held", "--wait=false"]);
    assert!(
        !server.kubectl(&["get", "cm", "held", "-o", "jsonpath={.metadata.deletionTimestamp}"]).is_empty()
    );
    server.kubectl(&["patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    eventually("the object goes with its last finalizer", || {
        !server.try_kubectl(&["get", "cm", "held"], "").0
    });
    // A Pod is there until its kubelet says that it is gone.
    server.apply("{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: default}, spec: {containers: [{name: a, image: x}]}}");
    server.kubectl(&["delete", "pod", "one", "--wait=false"]);
    assert!(server.kubectl(&["get", "pod", "one"]).contains("Terminating"));
    server.kubectl(&["delete", "pod", "one", "--grace-period=0", "--force"]);
    assert!(server.refused(&["delete", "ns", "default"], "").contains("forbidden"));
}

#[test]
fn bad_yaml_is_refused_by_field_path_and_changes_nothing() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    let policy = |spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: x, namespace: default}}, spec: {spec}}}"
        )
    };
    let peer = |spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: x, namespace: default}}, spec: {spec}}}"
        )
    };
    let pod = |spec: &str| {
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: default}}, spec: {spec}}}")
    };
    for (yaml, parts) in [
        (peer("{mtls: {mode: STRIKT}}"), vec!["spec.mtls.mode", "STRICT"]),
        (peer("{mtls: {mod: STRICT}}"), vec!["spec.mtls.mod", "mode"]),
        (peer("{portLevelMtls: {\"80\": {mode: STRICT}}}"), vec!["spec", "selector"]),
        (policy("{action: DENY}"), vec!["spec.rules"]),
        (policy("{rules: [{from: [{source: {ipBlocks: [\"10.0.0.0/99\"]}}]}]}"), vec!["spec.rules[0].from[0].source.ipBlocks[0]"]),
        (policy("{rules: [{to: [{operation: {ports: [\"99999\"]}}]}]}"), vec!["spec.rules[0].to[0].operation.ports[0]"]),
        (policy("{rules: \"all\"}"), vec!["spec.rules"]),
        (pod("{containers: [{name: A_b, image: x}]}"), vec!["spec.containers[0].name"]),
        (pod("{containers: [{name: a, image: x, prots: []}]}"), vec!["strict decoding error", "spec.containers[0].prots"]),
        (pod("{containers: [{name: a, image: x, ports: [{containerPort: 0}]}]}"), vec!["spec.containers[0].ports[0].containerPort"]),
        (pod("{containers: [{name: a, image: 3}]}"), vec!["spec.containers[0].image"]),
        (pod("{containers: []}"), vec!["spec.containers", "Required"]),
        (pod("{containers: [{name: a, image: x, securityContext: {runAsUser: 1337}}]}"), vec!["1337"]),
        (pod("{serviceAccountName: nobody, containers: [{name: a, image: x}]}"), vec!["serviceaccount \"nobody\" not found"]),
        ("{apiVersion: v1, kind: Service, metadata: {name: x, namespace: default}, spec: {type: NodePort, ports: [{port: 1}]}}".into(), vec!["spec.type"]),
        ("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x, namespace: default}, spec: {}}".into(), vec!["not enforced"]),
        ("{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: nowhere}}".into(), vec!["namespaces \"nowhere\" not found"]),
        ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: default}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: a, image: x}]}}}}".into(), vec!["spec.selector.matchLabels.a"]),
    ] {
        let err = server.refused(&["apply", "-f", "-"], &yaml);
        for part in parts {
            assert!(err.contains(part), "{yaml}\nshould name {part}:\n{err}");
        }
    }
    assert_eq!(server.kubectl(&["get", "pa,ap,pods,deploy", "-A", "-o", "name"]), "");
}

#[test]
fn service_accounts_have_no_rights_but_to_ask_about_themselves() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    let token = server.kubectl(&["create", "token", "default"]);
    let flag = format!("--token={}", token.trim());
    let bare = server.dir.path().join("bare");
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(server.kubeconfig()).expect("there")).expect("JSON");
    let mut config = config;
    config["users"][0]["user"] = serde_json::json!({});
    std::fs::write(&bare, config.to_string()).expect("written");
    let bare = bare.display().to_string();
    let err = server.refused(&["--kubeconfig", &bare, &flag, "get", "pods"], "");
    assert!(
        err.contains("User \"system:serviceaccount:default:default\" cannot list resource \"pods\""),
        "{err}"
    );
    let err = server.refused(&["--kubeconfig", &bare, &flag, "auth", "can-i", "create", "pods"], "");
    assert!(err.is_empty(), "{err}");
    assert!(
        server
            .kubectl(&["--kubeconfig", &bare, &flag, "auth", "whoami"])
            .contains("system:serviceaccount:default:default")
    );
    let err = server.refused(&["--kubeconfig", &bare, "--token=a.b.c", "get", "pods"], "");
    assert!(err.contains("Unauthorized") || err.contains("logged in"), "{err}");
}

#[test]
fn waiting_and_watching_see_what_happens() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply(SHOP);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            server.kubectl(&[
                "wait",
                "deploy/cart",
                "-n",
                "production",
                "--for=condition=Available",
                "--timeout=15s",
            ])
        });
        let rollout = scope.spawn(|| {
            server.kubectl(&["rollout", "status", "deploy/cart", "-n", "production", "--timeout=15s"])
        });
        let watching = scope.spawn(|| {
            let arguments = ["get", "deploy", "-n", "production", "-w", "--request-timeout=4s"];
            server.try_kubectl(&arguments, "").1
        });
        let status = r#"{"status":{"observedGeneration":1,"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2,
            "conditions":[{"type":"Available","status":"True"}]}}"#;
        // What comes in the middle of a watch is seen as well as what was there.
        std::thread::sleep(std::time::Duration::from_millis(500));
        server.kubectl(&[
            "patch",
            "deploy",
            "cart",
            "-n",
            "production",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ]);
        assert!(waiting.join().expect("joined").contains("condition met"));
        assert!(rollout.join().expect("joined").contains("successfully rolled out"));
        let table = watching.join().expect("joined");
        assert!(table.contains("0/2") && table.contains("2/2"), "{table}");
    });
}

/// Issuers of tokens, policies for gateways, and the mesh's configuration, as people meet them.
#[test]
fn policies_about_tokens_and_the_mesh_configuration_work() {
    if kubectl().is_none() {
        return;
    }
    let server = Server::start();
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: production}}");
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}");
    let issuer = |uri: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1beta1, kind: RequestAuthentication, metadata: {{name: idp, namespace: production}}, \
             spec: {{jwtRules: [{{issuer: \"https://idp\", jwksUri: \"{uri}\"}}]}}}}"
        )
    };
    server.apply(&issuer("https://idp/keys"));
    let table = server.kubectl(&["get", "ra", "-n", "production"]);
    let heads: Vec<_> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heads, ["NAME", "AGE"]);
    assert!(table.contains("idp"), "{table}");
    let refused = server.refused(&["apply", "-f", "-"], &issuer("idp/keys"));
    assert!(refused.contains("spec.jwtRules[0].jwksUri: Invalid value: 'idp/keys' is no URL"), "{refused}");
    let explained = server.kubectl(&["explain", "requestauthentication.spec.jwtRules.fromHeaders"]);
    assert!(explained.contains("counts as no token"), "{explained}");

    let policy = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: edge, namespace: production}, \
        spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], rules: [{}]}}";
    let (accepted, _, told) = server.try_kubectl(&["apply", "-f", "-"], policy);
    assert!(accepted && told.contains("Warning: spec.targetRefs: nothing enforces the policy"), "{told}");
    let patch =
        r#"{"spec":{"action":"DENY"},"status":{"conditions":[{"type":"Enforced","status":"False"}]}}"#;
    let patch =
        ["patch", "ap", "edge", "-n", "production", "--subresource=status", "--type=merge", "-p", patch];
    server.kubectl(&patch);
    let shown = server.kubectl(&[
        "get",
        "ap",
        "edge",
        "-n",
        "production",
        "-o",
        "jsonpath={.status.conditions[0].type} {.spec.action} {.metadata.generation}",
    ]);
    assert_eq!(shown, "Enforced  1", "the status alone is written, and counts for no generation");
    // Applying the same again keeps what the control plane has said.
    server.apply(policy);
    assert!(server.kubectl(&["get", "ap", "-n", "production", "-o", "json"]).contains("\"Enforced\""));

    let mesh = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{text}"
        )
    };
    server.apply(&mesh("    pathNormalization:\n      normalization: MERGE_SLASHES\n"));
    let refused =
        server.refused(&["apply", "-f", "-"], &mesh("    pathNormalization:\n      normalization: MERGE\n"));
    assert!(
        refused.contains(
            "data.mesh: Invalid value: line 2: pathNormalization.normalization: the string \"MERGE\" is none of"
        ),
        "{refused}"
    );
    let kept = server.kubectl(&["get", "cm", "istio", "-n", "istio-system", "-o", "jsonpath={.data.mesh}"]);
    assert!(kept.contains("MERGE_SLASHES"), "{kept}");
}
