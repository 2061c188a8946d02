//! Who may call what: every call of every service passes here before a handler sees it, and has its span from here.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;
use tracing::instrument::{Instrument, Instrumented};
use tracing::{debug, warn};

use super::log_limit::LogLimit;
use super::peer::Peer;
use super::request_deadline::InTime;
use super::status;
use crate::logging::spans;
use crate::meters::Meters;
use crate::model::{Refusal, Role, Roles, TraceParent};

/// The role that each RPC of the contract takes. Diagnose looks at every share of every pool, and shows what was said to
/// the tools of the host and what they said.
const RPCS: [(&str, Role); 11] = [
    ("/growd.v1.ShareService/ExtendShare", Role::Operator),
    ("/growd.v1.ShareService/ShrinkShare", Role::Operator),
    ("/growd.v1.ShareService/GetShare", Role::Reader),
    ("/growd.v1.ShareService/ListShares", Role::Reader),
    ("/growd.v1.JobService/GetJob", Role::Reader),
    ("/growd.v1.JobService/ListJobs", Role::Reader),
    ("/growd.v1.JobService/WatchJob", Role::Reader),
    ("/growd.v1.JobService/CancelJob", Role::Operator),
    ("/growd.v1.NodeService/GetNode", Role::Reader),
    ("/growd.v1.NodeService/ListPools", Role::Reader),
    ("/growd.v1.NodeService/Diagnose", Role::Admin),
];

/// `None` for what is open to all who can connect. What is not known here is for admins only.
fn role_for(rpc: &str) -> Option<Role> {
    if rpc.starts_with("/grpc.health.v1.Health/") {
        return None;
    }
    if is_reflection(rpc) {
        return Some(Role::Reader);
    }
    Some(RPCS.iter().find(|(known, _)| *known == rpc).map_or(Role::Admin, |(_, role)| *role))
}

fn is_reflection(rpc: &str) -> bool {
    rpc.starts_with("/grpc.reflection.")
}

/// What the configuration says of callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub roles: Roles,
    /// Whether the contract can be asked for by server reflection.
    pub reflection: bool,
}

/// The rules, which may change at any time, and what was turned away by them.
pub struct Guard {
    pub rules: watch::Sender<Rules>,
    turned_away: LogLimit,
    meters: Arc<Meters>,
}

impl Guard {
    pub fn new(rules: Rules, meters: Arc<Meters>) -> Self {
        Self { rules: watch::Sender::new(rules), turned_away: LogLimit::default(), meters }
    }

    /// Whether the caller may call anything but the health service.
    pub fn knows(&self, peer: &Peer) -> bool {
        self.rules.borrow().roles.of(&peer.identities).is_some()
    }

    /// The role that the call takes, which the caller has.
    fn check(&self, rpc: &str, peer: &Peer) -> Result<Option<Role>, Refusal> {
        let Some(needed) = role_for(rpc) else { return Ok(None) };
        let rules = self.rules.borrow();
        let refusal = match rules.roles.of(&peer.identities) {
            Some(role) if role >= needed && is_reflection(rpc) && !rules.reflection => {
                return Err(Refusal::Unsupported { what: "server reflection is switched off".to_owned() });
            }
            Some(role) if role >= needed => return Ok(Some(needed)),
            _ if !peer.is_known() => Refusal::Unauthenticated,
            _ => {
                // The caller chooses it, and it goes into a header and into the log.
                let rpc = rpc.trim_start_matches('/').chars().take(100).collect();
                Refusal::Forbidden { caller: peer.to_string(), rpc, role: needed }
            }
        };
        drop(rules);
        let reason = refusal.reason().as_str();
        self.meters.turned_away(reason);
        if let Some(count) = self.turned_away.count() {
            warn!(target: "audit", who = %peer, rpc, reason, turned_away = %count, "turned away");
        }
        Err(refusal)
    }
}

#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    guard: Arc<Guard>,
}

impl<S> Gate<S> {
    pub const fn new(inner: S, guard: Arc<Guard>) -> Self {
        Self { inner, guard }
    }
}

impl<S, R> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, Self::Error>>, Instrumented<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let nobody = Peer::default();
        let peer = request.extensions().get::<Arc<Peer>>().map_or(&nobody, |peer| peer);
        let rpc = request.uri().path();
        let needed = match self.guard.check(rpc, peer) {
            Ok(needed) => needed,
            Err(refusal) => return Either::Left(ready(Ok(status::unlogged(&refusal).into_http()))),
        };
        let caller = request.headers().get(TraceParent::HEADER).and_then(|text| text.to_str().ok()?.parse().ok());
        let (span, trace) = spans::rpc(rpc.trim_start_matches('/'), needed == Some(Role::Operator), caller);
        debug!(parent: &span, who = %peer, "called");
        if let Some(trace) = trace {
            request.extensions_mut().insert::<TraceParent>(trace);
        }
        Either::Right(self.inner.call(request.map(InTime::body)).instrument(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Identity, Reason};
    use crate::wire::proto::DESCRIPTOR;
    use prost_reflect::DescriptorPool;

    #[test]
    fn every_rpc_of_the_contract_has_its_role() {
        let contract = DescriptorPool::decode(DESCRIPTOR).unwrap();
        let services = contract.services().filter(|service| service.package_name() == "growd.v1");
        let methods = services.flat_map(|service| service.methods().collect::<Vec<_>>());
        let mut contract: Vec<_> =
            methods.map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name())).collect();
        let mut known: Vec<_> = RPCS.iter().map(|(rpc, _)| (*rpc).to_owned()).collect();
        contract.sort();
        known.sort();
        assert_eq!(contract, known, "say in RPCS which role each RPC takes");
    }

    #[test]
    fn roles_open_what_they_should_and_nothing_else() {
        let guard = Guard::new(Rules::default(), Arc::new(Meters::new().unwrap()));
        let name = |id: &str| Identity::Cn(id.to_owned());
        guard.rules.send_modify(|rules| {
            rules.reflection = true;
            rules.roles.grant(name("r"), Role::Reader);
            rules.roles.grant(name("o"), Role::Operator);
            rules.roles.grant(name("a"), Role::Admin);
        });
        let reason = |rpc: &str, identities: &[Identity]| {
            let peer = Peer { identities: identities.to_vec(), ..Peer::default() };
            guard.check(rpc, &peer).map_err(|refusal| refusal.reason()).err()
        };
        let others =
            ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/growd.v2.ShareService/ExtendShare"];
        for (rpc, role) in RPCS.into_iter().chain([(others[0], Role::Reader), (others[1], Role::Admin)]) {
            for (id, has) in [("r", Role::Reader), ("o", Role::Operator), ("a", Role::Admin)] {
                let expected = (has < role).then_some(Reason::Forbidden);
                assert_eq!(reason(rpc, &[name(id)]), expected, "{id} {rpc}");
            }
            assert_eq!(reason(rpc, &[name("other")]), Some(Reason::Forbidden), "{rpc}");
            assert_eq!(reason(rpc, &[Identity::Anonymous]), Some(Reason::Unauthenticated), "{rpc}");
            assert_eq!(reason(rpc, &[]), Some(Reason::Unauthenticated), "{rpc}");
            assert_eq!(reason(rpc, &[Identity::User(0)]), None, "{rpc}");
        }
        assert_eq!(reason("/grpc.health.v1.Health/Check", &[]), None);
        guard.rules.send_modify(|rules| rules.reflection = false);
        assert_eq!(reason(others[0], &[name("a")]), Some(Reason::Unsupported));
    }
}
