//! What is measured: a name, an address, the processes behind it; and whether it may be measured at all.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use url::Url;

use crate::client::Client;
use crate::proc;

/// A homeserver as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What reports call it.
    pub name: String,
    /// Where its client-server API is.
    pub url: Url,
    /// The processes whose CPU time counts, if they run on this machine.
    pub pids: Vec<u32>,
    /// Where its processes show what they count, as Prometheus text.
    pub metrics: Vec<Url>,
    /// The token that registration asks for.
    pub registration_token: Option<String>,
}

impl Target {
    /// Reads `URL` or `NAME=URL`.
    ///
    /// # Errors
    /// When the URL is none, or not `http`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains(['/', ':']) => (Some(name), url),
            _ => (None, text),
        };
        let url = Url::parse(url).with_context(|| format!("`{url}` is not a URL such as http://127.0.0.1:8008"))?;
        if url.scheme() != "http" {
            bail!(
                "{url}: only http:// is spoken, because TLS would be part of every figure: give the address of the \
                 server behind whatever ends TLS"
            );
        }
        let host = url.host_str().with_context(|| format!("{url} names no host"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let name = name.map_or_else(|| format!("{host}:{port}"), str::to_owned);
        Ok(Self { name, url, pids: Vec::new(), metrics: Vec::new(), registration_token: None })
    }

    /// Resolves the address.
    ///
    /// # Errors
    /// When the name does not resolve, or resolves to a public address and `i_own_this_server` was not said.
    pub fn address(&self, i_own_this_server: bool) -> Result<SocketAddr> {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.url.port_or_known_default().unwrap_or(80);
        let found = (host, port).to_socket_addrs().with_context(|| format!("`{host}` does not resolve"))?;
        let addresses: Vec<SocketAddr> = found.collect();
        let public = addresses.iter().find(|address| !is_private(address.ip()));
        if let (Some(public), false) = (public, i_own_this_server) {
            bail!(
                "{} resolves to {public}, which is neither loopback nor private. A load test of somebody else's server \
                 is an attack on it; if it is yours, add --i-own-this-server",
                self.url
            );
        }
        // A server that listens on one family only is more often on IPv4.
        let preferred = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        preferred.copied().with_context(|| format!("`{host}` has no address"))
    }

    /// A client of this target.
    ///
    /// # Errors
    /// As [`Self::address`].
    pub fn client(&self, i_own_this_server: bool, connections_max: usize, time_limit: Duration) -> Result<Client> {
        let address = self.address(i_own_this_server)?;
        let host = self.url.host_str().unwrap_or_default();
        let host = self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Client::new(address, &host, connections_max, time_limit)
    }

    /// Refuses process ids whose counters cannot be read: figures must not silently be zero.
    ///
    /// # Errors
    /// When a process does not exist or belongs to somebody else.
    pub fn check_pids(&self) -> Result<()> {
        for pid in &self.pids {
            if !proc::readable(*pid) {
                bail!("{}: the counters of process {pid} cannot be read: wrong id, or not the same user", self.name);
            }
        }
        Ok(())
    }
}

/// Splits `VALUE` or `NAME=VALUE` and finds the target that is meant: the named one, or the only one.
///
/// # Errors
/// When there is no such target, or none is named and there are several.
pub fn for_target<'a, 'b>(targets: &'a mut [Target], text: &'b str) -> Result<(&'a mut Target, &'b str)> {
    if let Some((name, value)) = text.split_once('=') {
        let target = targets.iter_mut().find(|target| target.name == name);
        return Ok((target.with_context(|| format!("no target is called `{name}`"))?, value));
    }
    match targets {
        [only] => Ok((only, text)),
        _ => bail!("with several targets, say which one is meant: NAME={text}"),
    }
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let shared = first == 100 && (64..128).contains(&second);
            address.is_loopback() || address.is_private() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_the_given_name_or_that_of_their_address() {
        let target = Target::parse("http://127.0.0.1:8008").unwrap();
        assert_eq!(target.name, "127.0.0.1:8008");
        assert_eq!(Target::parse("synapse=http://localhost:1").unwrap().name, "synapse");
        for refused in ["localhost", "https://example.org", "http://"] {
            assert!(Target::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_public_address_needs_a_promise() {
        for text in ["http://8.8.8.8", "http://[2001:4860:4860::8888]", "http://[::ffff:8.8.8.8]"] {
            let target = Target::parse(text).unwrap();
            let refusal = target.address(false).unwrap_err().to_string();
            assert!(refusal.contains("--i-own-this-server"), "{refusal}");
            assert!(target.address(true).is_ok());
        }
        for text in ["http://127.0.0.1", "http://10.0.0.7", "http://[::1]:8", "http://192.168.1.1", "http://100.64.0.1"]
        {
            assert!(Target::parse(text).unwrap().address(false).is_ok(), "{text}");
        }
    }

    #[test]
    fn options_of_one_target_go_to_it() {
        let mut targets = [Target::parse("a=http://[::1]:1").unwrap(), Target::parse("b=http://[::1]:2").unwrap()];
        assert_eq!(for_target(&mut targets, "b=17").unwrap().0.name, "b");
        assert!(for_target(&mut targets, "17").is_err());
        assert!(for_target(&mut targets, "c=17").is_err());
        assert_eq!(for_target(&mut targets[..1], "17").unwrap().1, "17");
    }

    #[test]
    fn a_process_that_cannot_be_read_is_refused() {
        let mut target = Target::parse("http://[::1]").unwrap();
        target.pids = vec![std::process::id()];
        assert!(target.check_pids().is_ok());
        target.pids = vec![u32::MAX];
        assert!(target.check_pids().is_err());
    }
}
