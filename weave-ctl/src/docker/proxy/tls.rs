//! TLS for TCP listeners (control.md 4.8): at least 1.2, as `http/1.1`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

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
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|e| failed(&e))?;
    let builder = if options.verify {
        let roots = Arc::new(authority(&options.ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        builder.with_client_cert_verifier(verifier.map_err(|e| failed(&e))?)
    } else {
        builder.with_no_client_auth()
    };
    let ours = Ours(certificate(options, &provider)?.map(Arc::new));
    let mut config = builder.with_cert_resolver(Arc::new(ours));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
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

fn certificate(options: &TlsOptions, provider: &CryptoProvider) -> Result<Option<CertifiedKey>, TlsError> {
    let (Some(cert), Some(key)) = (present(&options.cert)?, present(&options.key)?) else {
        return Ok(None);
    };
    let bad = |path: &Path, error: &dyn std::fmt::Display| TlsError(format!("{}: {error}", path.display()));
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.map_err(|e| bad(&options.cert, &e))?;
    if chain.is_empty() {
        return Err(bad(&options.cert, &"no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| bad(&options.key, &e))?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|e| bad(&options.key, &e))?;
    Ok(Some(certified))
}

fn present(path: &Path) -> Result<Option<Vec<u8>>, TlsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(
                "no TLS connection to the proxy will work: {} is missing",
                path.display()
            );
            Ok(None)
        }
        Err(error) => Err(TlsError(format!("{}: {error}", path.display()))),
    }
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
