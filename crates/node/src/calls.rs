//! Calls between nodes: whether there are any, and how they are guarded.

use std::sync::Arc;

use cofactor_rpc::{ClientOptions, MutualTls, RpcServer, RpcTransport, Running, Security, ServerOptions};
use cofactor_store::Store;
use cofactor_types::{Clock, Fault};
use cofactor_wire::node::Transport;

use crate::{Config, Core, StartError, measured::MeasuredTransport};

/// The way to and from other nodes.
#[derive(Debug)]
pub(crate) struct Rpc {
    listen: String,
    security: Security,
    transport: Arc<dyn Transport>,
}

impl Rpc {
    /// `None` for a node whose store is its own.
    ///
    /// # Errors
    /// Where neither a secret nor certificates guard the calls.
    pub(crate) fn choose(
        config: &Config,
        store: &dyn Store,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Self>, StartError> {
        if store.spans_partitions() {
            return Ok(None);
        }
        let tls = config.cluster.tls.clone().map(|tls| MutualTls {
            ca: tls.ca,
            certificate: tls.certificate,
            key: tls.key,
            server_name: tls.server_name,
        });
        let wrong = |error: cofactor_rpc::SecurityError| {
            Fault::invalid(format!("the options `cluster.secret` and `cluster.tls`: {error}"))
        };
        let security = Security::choose(config.cluster.secret.clone(), tls).map_err(wrong)?;
        let transport = RpcTransport::new(ClientOptions::new(security.clone()), Arc::clone(clock)).map_err(wrong)?;
        let transport = MeasuredTransport::over(Arc::new(transport), Arc::clone(clock));
        Ok(Some(Self { listen: config.cluster.listen.clone(), security, transport }))
    }

    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// Answers the calls of other nodes.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub(crate) async fn listen(self, core: &Core) -> Result<Running, StartError> {
        let options = ServerOptions::new(self.listen, self.security);
        let server = RpcServer::bind(options, Arc::new(core.server())).await;
        Ok(server.map_err(|error| Fault::unavailable(format!("the option `cluster.listen`: {error}")))?)
    }
}
