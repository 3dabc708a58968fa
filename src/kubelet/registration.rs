//! One registration with the kubelet.

use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::api::v1beta1::registration_client::RegistrationClient;
use crate::api::v1beta1::{DevicePluginOptions, RegisterRequest};

/// The version of the device plugin API, as the kubelet compares it
/// (Kubernetes' pkg/apis/deviceplugin/v1beta1/constants.go).
pub const API_VERSION: &str = "v1beta1";

/// The kubelet dials back inside the call and gives that 10 s
/// (Kubernetes' pkg/kubelet/cm/devicemanager/plugin/v1beta1/client.go).
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Why a registration failed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Nobody accepts on the kubelet's socket: a kubelet that is gone, or that
    /// has bound its socket and does not listen yet.
    #[error("nobody accepts on the kubelet's socket: {0}")]
    Refused(#[source] io::Error),
    /// The connection broke before an answer came.
    #[error("connection to the kubelet failed: {0}")]
    Connection(#[source] tonic::transport::Error),
    /// The kubelet answered with an error.
    #[error("the kubelet refused the registration ({code:?}): {message}")]
    Answered {
        /// The gRPC code; the kubelet's own errors are `Unknown`.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// The kubelet took the call and did not answer.
    #[error("the kubelet did not answer within {0:?}")]
    TimedOut(Duration),
}

impl RegisterError {
    /// A word for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timeout",
            Self::Connection(_) | Self::Answered { .. } => "error",
        }
    }
}

/// Registers the plugin that serves on the socket `endpoint` (a file name in
/// the kubelet's folder) for `resource_name` and has these `options`, over a connection of
/// its own.
///
/// # Errors
///
/// See [`RegisterError`].
pub async fn register(
    kubelet_socket: &Path,
    endpoint: String,
    resource_name: String,
    options: DevicePluginOptions,
) -> Result<(), RegisterError> {
    let request = RegisterRequest {
        version: API_VERSION.into(),
        endpoint,
        resource_name,
        options: Some(options),
    };
    let call = async {
        // Connected here and not in the connector, so that a refusal is told
        // from every other failure.
        let stream = UnixStream::connect(kubelet_socket)
            .await
            .map_err(RegisterError::Refused)?;
        let mut stream = Some(TokioIo::new(stream));
        let connect = service_fn(move |_| {
            let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
            async { stream.map_err(io::Error::from) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .map_err(RegisterError::Connection)?;
        RegistrationClient::new(channel)
            .register(request)
            .await
            .map_err(|status| RegisterError::Answered {
                code: status.code(),
                message: status.message().into(),
            })
    };
    match timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(RegisterError::TimedOut(DEADLINE)),
    }
}
