//! TLS over TCP, at least 1.2, as `http/1.1`: of the proxy's listeners (control.md 4.8), and to Docker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::endpoint::Stream;

/// What is spoken.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
const PROTOCOL: &[u8] = b"http/1.1";
/// Names of the files, as all of Docker's programs have them.
pub const CA: &str = "ca.pem";
/// One's own certificate.
pub const CERT: &str = "cert.pem";
/// Its key.
pub const KEY: &str = "key.pem";

/// Files, and what is asked of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Clients need a certificate of the authority.
    pub verify: bool,
    /// Certificates of the authority.
    pub ca: PathBuf,
    /// Our own certificate, and what leads from it to the authority.
    pub cert: PathBuf,
    /// Our key.
    pub key: PathBuf,
}

/// TLS cannot be done like this. Fatal.
#[derive(Debug, thiserror::Error)]
#[error("Could not configure tls for proxy: {0}")]
pub struct TlsError(String);

/// Our certificate; without one every handshake fails.
#[derive(Debug)]
struct Ours(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Ours {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// What makes TLS streams out of connections. A missing certificate or key is no error here: handshakes fail then.
pub fn acceptor(options: &TlsOptions) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let failed = |error: &dyn std::fmt::Display| TlsError(error.to_string());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&VERSIONS)
        .map_err(|e| failed(&e))?;
    let builder = if options.verify {
        let roots = Arc::new(authority(&options.ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        builder.with_client_cert_verifier(verifier.map_err(|e| failed(&e))?)
    } else {
        builder.with_no_client_auth()
    };
    let ours = pair(&options.cert, &options.key)?;
    if ours.is_none() {
        let (cert, key) = (options.cert.display(), options.key.display());
        tracing::warn!("no TLS connection to the proxy will work: {cert} or {key} is missing");
    }
    let certified = ours.map(|(chain, key)| CertifiedKey::from_der(chain, key, &provider));
    let certified = certified.transpose();
    let ours = Ours(certified.map_err(|e| bad(&options.key, &e))?.map(Arc::new));
    let mut config = builder.with_cert_resolver(Arc::new(ours));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn authority(path: &Path) -> Result<RootCertStore, TlsError> {
    let unread = |error: &dyn std::fmt::Display| {
        TlsError(format!(
            "Couldn't read CA certificate: open {}: {error}",
            path.display()
        ))
    };
    let pem = fs::read(path).map_err(|e| unread(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|e| e.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|e| e.to_string()));
        added.map_err(|e| unread(&e))?;
    }
    if roots.is_empty() {
        return Err(unread(&"no certificate in it"));
    }
    Ok(roots)
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate, with what leads from it to the authority, and its key; `None` if one is missing.
fn pair(cert: &Path, key: &Path) -> Result<Option<Pair>, TlsError> {
    let (Some(chain), Some(secret)) = (present(cert)?, present(key)?) else {
        return Ok(None);
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|e| bad(cert, &e))?;
    if chain.is_empty() {
        return Err(bad(cert, &"no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|e| bad(key, &e))?;
    Ok(Some((chain, secret)))
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError(format!("{}: {error}", path.display()))
}

fn present(path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(bad(path, &error)),
    }
}

/// The variable with that folder.
pub const CERTIFICATES: &str = "DOCKER_CERT_PATH";

/// Where Docker's clients have their certificates: there, or in `~/.docker`.
pub fn client_folder(lookup: impl Fn(&str) -> Option<String>) -> PathBuf {
    let set = |name| lookup(name).filter(|value| !value.is_empty());
    let home = || PathBuf::from(set("HOME").unwrap_or_else(|| "/".to_owned())).join(".docker");
    set(CERTIFICATES).map_or_else(home, PathBuf::from)
}

/// That folder, if this process is to speak TLS with a Docker that is reached over TCP.
pub(super) fn of_client() -> Option<PathBuf> {
    let lookup = |name: &str| std::env::var(name).ok();
    lookup("DOCKER_TLS_VERIFY").filter(|value| !value.is_empty())?;
    Some(client_folder(lookup))
}

/// TLS with the server at `address`, whose certificate must be of the authority in the folder.
pub(super) async fn connect(folder: &Path, address: &str, stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    let (connector, name) = connector(folder, address).map_err(|e| io::Error::other(e.0))?;
    Ok(Box::new(connector.connect(name, stream).await?))
}

fn connector(folder: &Path, address: &str) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError(format!("TLS, for DOCKER_TLS_VERIFY: {error}"));
    let roots = authority(&folder.join(CA)).map_err(|e| failed(&e.0))?;
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&VERSIONS)
        .map_err(|e| failed(&e))?
        .with_root_certificates(roots);
    let mut config = match pair(&folder.join(CERT), &folder.join(KEY))? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|e| failed(&e))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| failed(&e))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_missing_or_no_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let options = |verify| TlsOptions {
            verify,
            ca: dir.path().join("ca.pem"),
            cert: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
        };
        let error = |verify| {
            acceptor(&options(verify))
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        assert_eq!(error(false), "", "fails only at the handshake");
        let text = error(true);
        assert!(
            text.starts_with("Could not configure tls for proxy: Couldn't read CA certificate: open "),
            "{text}"
        );
        fs::write(dir.path().join("ca.pem"), "nothing").unwrap();
        assert!(error(true).ends_with("no certificate in it"));
        fs::write(dir.path().join("cert.pem"), "nothing").unwrap();
        fs::write(dir.path().join("key.pem"), "nothing").unwrap();
        assert!(error(false).contains("cert.pem"));
    }
}
