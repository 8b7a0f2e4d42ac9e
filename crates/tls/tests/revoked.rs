//! Who is revoked is refused, on either side, by the mesh's list and by those of authorities.

mod common;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Ends, handshake, names};
use maille_core::{Identity, TrustDomain};
use maille_pki::{CertificateDer, KeyPair, Svid, TrustBundles, certificates_from_pem, leaf_facts};
use maille_testkit::TestAuthority;
use maille_tls::{
    ClientAlpn, MAX_REVOKED, Presenter, Reason, Revoked, ServerAlpn, TlsContext, Trust, control,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};

fn connect(client: &TlsContext, server: &TlsContext) -> Ends {
    let config = client.current().client_config(ClientAlpn::Tcp, &names([])).expect("config");
    handshake(config, server.current().server_config(ServerAlpn::None))
}

fn revoked(serials: &[&str], identities: &[(Identity, Option<SystemTime>)]) -> Arc<Revoked> {
    let serials = serials.iter().map(|&serial| serial.to_owned());
    Arc::new(Revoked::new("v".to_owned(), serials, identities.to_vec(), Vec::new()).expect("good"))
}

/// Why a side refuses the other.
fn reason(ends: &Ends, presenter: Presenter) -> Reason {
    let error = match presenter {
        Presenter::Client => &ends.server_error,
        Presenter::Server => &ends.client_error,
    };
    let error = error.as_ref().expect("a refusal");
    let refusal = error.refusal().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(refusal.presenter, presenter);
    assert!(refusal.to_string().contains("revoked") && refusal.reason.is_revocation(), "{refusal}");
    refusal.reason.clone()
}

#[test]
fn a_revoked_serial_number_or_identity_is_refused_as_client_and_as_server() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let (web_id, cart_id) = (authority.identity("shop", "web"), authority.identity("shop", "cart"));
    let serial = |context: &TlsContext| format!("00{}", context.current().svid().serial());
    let open = connect(&web, &cart);
    let chain = open.established().1.peer_certificates().expect("a client").to_vec();

    for list in [revoked(&[&serial(&web)], &[]), revoked(&[], &[(web_id.clone(), None)])] {
        cart.replace_trust(authority.trust().without(list.clone())).expect("in force");
        let why = reason(&connect(&web, &cart), Presenter::Client);
        let rechecked = cart.current().recheck_client(&chain, UnixTime::now()).expect_err("revoked since");
        assert_eq!(rechecked.reason, why, "an open connection is judged as a new one");
        assert!(rechecked.to_string().contains("cluster.local/ns/shop/sa/web"), "{rechecked}");
    }
    cart.replace_trust(authority.trust()).expect("taken back");
    connect(&web, &cart).established();

    for list in [revoked(&[&serial(&cart)], &[]), revoked(&[], &[(cart_id.clone(), None)])] {
        web.replace_trust(authority.trust().without(list)).expect("in force");
        reason(&connect(&web, &cart), Presenter::Server);
    }
    web.replace_trust(authority.trust().without(revoked(&["1", "2"], &[(web_id, None)]))).expect("in force");
    connect(&web, &cart).established();
}

#[test]
fn an_identity_is_good_again_by_certificates_that_start_later() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let identity = authority.identity("shop", "web");
    let start = web.current().svid().not_before();
    for (until, is_refused) in [(start, true), (start - Duration::from_millis(1), false)] {
        let list = revoked(&[], &[(identity.clone(), Some(until))]);
        cart.replace_trust(authority.trust().without(list)).expect("in force");
        let ends = connect(&web, &cart);
        match is_refused {
            true => drop(reason(&ends, Presenter::Client)),
            false => drop(ends.established()),
        }
    }
}

#[test]
fn who_is_revoked_by_one_name_of_a_trust_domain_is_so_by_all() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let domain = |name: &str| TrustDomain::parse(name).expect("valid");
    let named = |name: &str| Identity::new(domain(name), "shop", "web").expect("valid");
    let names = || ["new.td", "cluster.local", "old.td"].map(domain);
    let start = web.current().svid().not_before();
    let early = Some(start - Duration::from_secs(9));
    for (identities, is_refused) in [
        (vec![(named("old.td"), None)], true),
        (vec![(named("new.td"), None)], true),
        (vec![(named("other.td"), None)], false),
        (vec![(named("old.td"), early)], false),
        // Of two entries, the wider.
        (vec![(named("old.td"), early), (named("new.td"), Some(start))], true),
        (vec![(named("cluster.local"), early), (named("old.td"), None)], true),
    ] {
        let list =
            Revoked::new("v".to_owned(), [], identities.clone(), Vec::new()).expect("good").among(names());
        cart.replace_trust(authority.trust().without(Arc::new(list))).expect("in force");
        let ends = connect(&web, &cart);
        match is_refused {
            true => drop(reason(&ends, Presenter::Client)),
            false => drop(ends.established()),
        }
        let list = Revoked::new("v".to_owned(), [], identities, Vec::new()).expect("good");
        cart.replace_trust(authority.trust().without(Arc::new(list))).expect("in force");
        connect(&web, &cart).established();
    }
}

#[test]
fn lists_are_bounded_and_what_is_no_list_is_refused() {
    let many = (0..=MAX_REVOKED).map(|n| format!("{n:x}"));
    let error = Revoked::new(String::new(), many, [], Vec::new()).expect_err("too many");
    assert!(error.to_string().contains("too many"), "{error}");
    let error = Revoked::new(String::new(), [], [], vec![vec![0x30, 0]]).expect_err("no list");
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[test]
fn the_control_planes_port_refuses_the_revoked_too() {
    let authority = TestAuthority::new();
    let web = authority.svid("shop", "web");
    let serving = authority.server(&["istiod"], &[]);
    let own = control::Credential::from_pem(&serving.chain_pem(), &serving.key.to_pem()).expect("own");
    let shown = control::Credential::from_svid(&web).expect("an SVID");
    let client = control::discovery_client(&authority.roots_pem(), Some(&shown)).expect("client");
    for (list, is_refused) in [(revoked(&["1"], &[]), false), (revoked(&[web.serial()], &[]), true)] {
        let trust = authority.trust().without(list);
        let server = control::discovery_server(&own, &trust).expect("server");
        let ends = common::handshake_with("istiod", client.clone(), server);
        match is_refused {
            true => assert_eq!(reason(&ends, Presenter::Client), Reason::RevokedSerial),
            false => drop(ends.established()),
        }
    }
}

/// A root, an intermediate and a workload's certificate, all of openssl's, and lists of the first two.
struct Chain {
    dir: tempfile::TempDir,
}

const CONFIG: &str = "[ca]\ndefault_ca = own\n[own]\ncrlnumber = number\ndefault_md = sha256\n";
const CA: &str = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n";
const LEAF: &str = "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/web\nkeyUsage=critical,digitalSignature\n\
                    extendedKeyUsage=serverAuth,clientAuth\n";

impl Chain {
    fn new() -> Self {
        let chain = Self { dir: tempfile::tempdir().expect("a directory") };
        chain.write("config", CONFIG);
        chain.write("number", "01\n");
        chain.write("ca.ext", CA);
        chain.write("leaf.ext", LEAF);
        for name in ["root", "int", "leaf"] {
            chain.openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}.key"));
            chain.openssl(&format!("req -new -key {name}.key -subj /O={name} -out {name}.csr"));
        }
        let sign = "x509 -req -days 9";
        chain.openssl(&format!(
            "{sign} -in root.csr -signkey root.key -extfile ca.ext -set_serial 1 -out root.pem"
        ));
        for (name, above, extensions, serial) in
            [("int", "root", "ca", "0x2000"), ("leaf", "int", "leaf", "0x3000")]
        {
            chain.openssl(&format!(
                "{sign} -in {name}.csr -CA {above}.pem -CAkey {above}.key -set_serial {serial} -extfile {extensions}.ext \
                 -out {name}.pem"
            ));
        }
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("writable");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("written")
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.dir.path())
            .output()
            .expect("openssl");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        certificates_from_pem("certificate", &self.read(&format!("{name}.pem"))).expect("PEM").remove(0)
    }

    /// The list of one authority that revokes these serial numbers; `period` says how long it is good.
    fn list(&self, authority: &str, serials: &[&str], period: &str) -> Vec<u8> {
        let lines = serials
            .iter()
            .map(|serial| format!("R\t350101000000Z\t250101000000Z\t{serial}\tunknown\t/O=x\n"));
        self.write("index", &lines.collect::<String>());
        self.write("config", &format!("{CONFIG}database = index\n"));
        self.openssl(&format!(
            "ca -gencrl -config config -keyfile {authority}.key -cert {authority}.pem {period} -out {authority}.crl"
        ));
        let pem = self.read(&format!("{authority}.crl"));
        CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).expect("a list").to_vec()
    }

    fn context(&self, lists: Vec<Vec<u8>>) -> TlsContext {
        let pem = [self.read("leaf.pem"), self.read("int.pem")];
        let svid =
            Svid::from_pem(&pem, KeyPair::from_pem(&self.read("leaf.key")).expect("a key")).expect("an SVID");
        let mut bundles = TrustBundles::new();
        let domain = svid.identity().trust_domain().clone();
        bundles.insert(domain.clone(), vec![self.certificate("root")]).expect("a root");
        let revoked = Revoked::new("v".to_owned(), [], [], lists).expect("good lists");
        let trust = Trust::of_mesh(bundles, &domain, &[]).expect("trust").without(Arc::new(revoked));
        TlsContext::new(svid, trust).expect("context")
    }

    /// What becomes of a handshake of two ends that both have these lists.
    fn outcome(&self, lists: &[&Vec<u8>]) -> Result<(), Reason> {
        let context = self.context(lists.iter().map(|&list| list.clone()).collect());
        let ends = connect(&context, &context);
        match &ends.client_error {
            None => {
                ends.established();
                Ok(())
            }
            Some(error) => Err(error.refusal().unwrap_or_else(|| panic!("{error}")).reason.clone()),
        }
    }
}

const HOUR: &str = "-crlhours 1";

#[test]
fn lists_of_authorities_hold_for_leaf_and_intermediate_and_are_wanted_of_all_or_none() {
    let chain = Chain::new();
    let (of_root, of_int) = (chain.list("root", &[], HOUR), chain.list("int", &["99"], HOUR));
    assert_eq!(chain.outcome(&[]), Ok(()));
    assert_eq!(chain.outcome(&[&of_root, &of_int]), Ok(()));
    assert_eq!(chain.outcome(&[&of_root]), Err(Reason::NoRevocationList));
    assert_eq!(chain.outcome(&[&of_int]), Err(Reason::NoRevocationList));
    let leaf = chain.list("int", &["99", "3000"], HOUR);
    let by_authority = |intermediate: bool, serial: &str| Reason::RevokedByAuthority {
        intermediate,
        serial: serial.to_owned(),
    };
    assert_eq!(chain.outcome(&[&of_root, &leaf]), Err(by_authority(false, "3000")));
    let above = chain.list("root", &["2000"], HOUR);
    assert_eq!(chain.outcome(&[&above, &of_int]), Err(by_authority(true, "2000")));
    assert_eq!(leaf_facts(&chain.certificate("leaf")).expect("a leaf").serial, "3000");
}

#[test]
fn a_list_out_of_date_stays_in_force_and_costs_nobody_else_his_right() {
    let chain = Chain::new();
    let past = "-crl_lastupdate 20250101000000Z -crl_nextupdate 20250102000000Z";
    let of_root = chain.list("root", &[], past);
    assert_eq!(chain.outcome(&[&of_root, &chain.list("int", &["99"], past)]), Ok(()));
    assert!(chain.outcome(&[&of_root, &chain.list("int", &["3000"], past)]).is_err());
}

/// Roots before and after a rotation have one name.
#[test]
fn a_list_belongs_to_the_key_that_signed_it_and_not_to_a_name() {
    let (chain, namesake) = (Chain::new(), Chain::new());
    let lists = [namesake.list("root", &["2000"], HOUR), namesake.list("int", &["3000"], HOUR)];
    assert_eq!(chain.outcome(&[&lists[0], &lists[1]]), Ok(()));
    assert!(namesake.outcome(&[&lists[0], &lists[1]]).is_err());
}
