//! Certificates for Docker's TLS: an authority, a server at 127.0.0.1, and a client.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::lab::Host;

/// `client/` is as Docker's clients have it.
const SCRIPT: &str = r#"
mkdir -p "$1/client" && cd "$1" &&
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca-key.pem -out ca.pem || exit 1
for name in server client; do
    openssl req -newkey rsa:2048 -nodes -subj /CN=$name -keyout $name-key.pem -out $name.csr &&
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=%sAuth\n' $name > $name.ext &&
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile $name.ext \
        -out $name.pem || exit 1
done 2>/dev/null
cp ca.pem client/ && cp client.pem client/cert.pem && cp client-key.pem client/key.pem
"#;

/// Files of an authority.
#[derive(Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in a folder of the host.
    ///
    /// # Errors
    /// If `openssl` is missing or fails.
    pub fn make(host: &Host, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        host.exec(&["sh", "-c", SCRIPT, "sh", &folder.display().to_string()])?
            .ok()?;
        Ok(Self(folder.to_owned()))
    }

    /// The options for a server that asks for the client's certificate.
    #[must_use]
    pub fn server_options(&self) -> [String; 3] {
        self.options("server")
    }

    /// The options for a client.
    #[must_use]
    pub fn client_options(&self) -> [String; 3] {
        self.options("client")
    }

    /// For `DOCKER_CERT_PATH`.
    #[must_use]
    pub fn client_folder(&self) -> PathBuf {
        self.0.join("client")
    }

    fn options(&self, name: &str) -> [String; 3] {
        let file = |name: String| self.0.join(name).display().to_string();
        [
            format!("--tlscacert={}", file("ca.pem".to_owned())),
            format!("--tlscert={}", file(format!("{name}.pem"))),
            format!("--tlskey={}", file(format!("{name}-key.pem"))),
        ]
    }
}
