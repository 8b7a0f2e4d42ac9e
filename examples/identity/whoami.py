"""Asks the SPIFFE Workload API of its Pod who it is: needs the package spiffe of PyPI."""

from spiffe import WorkloadApiClient

with WorkloadApiClient() as client:
    svid = client.fetch_x509_svid()
    print("X.509-SVID", svid.spiffe_id)
    token = client.fetch_jwt_svid(audience={"orders"})
    print("JWT-SVID", client.validate_jwt_svid(token.token, audience="orders").spiffe_id)
    print("trusts", *sorted(str(bundle.trust_domain) for bundle in client.fetch_x509_bundles().bundles))
