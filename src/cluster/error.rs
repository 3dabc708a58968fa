//! What goes wrong between this process and the API server, and what helps.

use std::time::Duration;

/// Why a request had no effect, or none that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// There is nothing to connect with: no node's name, no service account, no
    /// good kubeconfig. Only another start of the process helps.
    #[error("{0}")]
    NotConfigured(String),
    /// No object of Kubernetes can have this name.
    #[error("{0:?} is no name of an object")]
    InvalidName(String),
    /// Status 401.
    #[error(
        "the API server does not take the credentials ({0}); \
         see the service account's token, or the kubeconfig's user"
    )]
    Unauthorized(String),
    /// Status 403: RBAC, or an admission policy.
    #[error(
        "may not {verb} {resource} ({message}); \
         give the service account this verb, or see the policy that refuses"
    )]
    Forbidden {
        /// As RBAC has it.
        verb: &'static str,
        /// As RBAC has it.
        resource: &'static str,
        /// The API server's words.
        message: String,
    },
    /// Status 404.
    #[error("not found: {0}")]
    NotFound(String),
    /// Status 409: it changed meanwhile.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Status 429 that is no disruption budget's.
    #[error("the API server has too many requests (API priority and fairness)")]
    TooManyRequests {
        /// What the API server asks for.
        retry_after: Option<Duration>,
    },
    /// Another status of 4xx: the request as it is will never be taken.
    #[error("the API server rejects the request: {code} {message}")]
    Rejected {
        /// The HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
    },
    /// A status of 5xx.
    #[error("the API server failed: {code} {message}")]
    Failed {
        /// The HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
        /// What the API server asks for.
        retry_after: Option<Duration>,
    },
    /// No connection, or no answer in time.
    #[error("the API server does not answer: {0}")]
    Unreachable(String),
    /// An answer that cannot be read.
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(String),
}

impl ClusterError {
    /// Whether the same request may be taken another time. Rights and nodes come
    /// while the process runs; a request that is wrong in itself stays so.
    #[must_use]
    pub fn is_worth_retrying(&self) -> bool {
        !matches!(
            self,
            Self::NotConfigured(_) | Self::InvalidName(_) | Self::Rejected { .. }
        )
    }

    /// Whether any other request would fare alike now.
    #[must_use]
    pub fn concerns_all(&self) -> bool {
        matches!(
            self,
            Self::Unauthorized(_)
                | Self::TooManyRequests { .. }
                | Self::Failed { .. }
                | Self::Unreachable(_)
                | Self::Unreadable(_)
        )
    }

    /// How long the API server wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after } | Self::Failed { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_in_itself_is_not_worth_retrying() {
        let message = String::new;
        let code = 422;
        for (error, retry, all) in [
            (ClusterError::NotConfigured(message()), false, false),
            (ClusterError::InvalidName(message()), false, false),
            (ClusterError::Unauthorized(message()), true, true),
            (ClusterError::NotFound(message()), true, false),
            (ClusterError::Conflict(message()), true, false),
            (
                ClusterError::TooManyRequests { retry_after: None },
                true,
                true,
            ),
            (
                ClusterError::Rejected {
                    code,
                    message: message(),
                },
                false,
                false,
            ),
            (ClusterError::Unreachable(message()), true, true),
            (ClusterError::Unreadable(message()), true, true),
        ] {
            assert_eq!(error.is_worth_retrying(), retry, "{error:?}");
            assert_eq!(error.concerns_all(), all, "{error:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let error = ClusterError::Forbidden {
            verb: "patch",
            resource: "nodes/status",
            message: "no".into(),
        };
        assert!(error.to_string().starts_with("may not patch nodes/status"));
        assert!(error.is_worth_retrying() && !error.concerns_all());
    }
}
