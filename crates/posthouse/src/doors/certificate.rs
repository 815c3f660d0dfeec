//! Certificates: those that an operator names, and the node's own for who has none.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The file in the data directory with the node's own certificate and its key.
pub const OWN_FILE: &str = "own-certificate.pem";

/// What the node's own certificate is for.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A file that cannot be used.
#[derive(Debug)]
pub struct Unusable {
    /// The file.
    pub file: PathBuf,
    /// What is wrong.
    pub what: String,
}

fn unusable(file: &Path, what: impl ToString) -> Unusable {
    Unusable { file: file.to_owned(), what: what.to_string() }
}

/// What connections are encrypted with, from files in PEM.
///
/// # Errors
/// The file that cannot be used.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, Unusable> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|e| unusable(certificate, e))?.collect();
    let chain = chain.map_err(|e| unusable(certificate, e))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, e))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(certificate, e))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| unusable(certificate, e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The same with the node's own certificate, made and kept in `dir` if there is none. It
/// proves nothing to anyone: it is for clients that encrypt whatever comes.
///
/// # Errors
/// The file that cannot be used.
pub fn own(dir: &Path) -> Result<TlsAcceptor, Unusable> {
    let file = dir.join(OWN_FILE);
    if !file.exists() {
        make(&file).map_err(|e| unusable(&file, e))?;
    }
    acceptor(&file, &file)
}

fn make(file: &Path) -> io::Result<()> {
    let names = OWN_NAMES.map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let text = made.cert.pem() + &made.signing_key.serialize_pem();
    // Whole, or not there.
    let new = file.with_extension("tmp");
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_certificate_is_made_once_and_is_nobody_elses_to_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        own(dir.path()).unwrap();
        let file = dir.path().join(OWN_FILE);
        let made = fs::read(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        own(dir.path()).unwrap();
        assert_eq!(fs::read(&file).unwrap(), made);
        fs::write(&file, "nonsense").unwrap();
        assert_eq!(own(dir.path()).err().unwrap().file, file);
    }
}
