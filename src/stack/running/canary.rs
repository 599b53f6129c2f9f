//! The probe at `init` and `mount`, and what its refusal means.
//!
//! The first PUT carries the volume's encryption: a canary. Where the server refuses it, a few more
//! requests find out which setting is in the way. A mount probes with the lease (`lease`).

use futures::FutureExt;

use crate::stack::{StackError, StackErrorKind, StoreStack};
use crate::store::{ErrorClass, ProbeError, class, probe, sentence};

/// Tries out what a volume needs of its store, in the mode that it will be written in.
///
/// # Errors
/// [`StackError::Unsuitable`]; [`StackError::Encryption`] where the mode is what was refused.
pub async fn probe_store(layers: &StoreStack) -> Result<(), StackError> {
    match probe(&*layers.retry).await {
        Ok(()) => Ok(()),
        Err(e) => Err(explained(layers, e).await),
    }
}

/// Why a store refused what a volume needs: which setting is in the way, if that can be found out.
pub(crate) async fn explained(layers: &StoreStack, error: ProbeError) -> StackError {
    if let (Some(s3), ProbeError::Failed { what, source }) = (&layers.s3, &error)
        && matches!(class(source), ErrorClass::Auth | ErrorClass::Unsupported | ErrorClass::Other)
        && let Some(diagnosis) = s3.why_refused().boxed().await
    {
        let said = sentence(source);
        return StackError::Encryption {
            kind: StackErrorKind::Unsuitable,
            message: format!("cannot {what} in the store: {said}; {}", diagnosis.why),
            hint: diagnosis.next,
        };
    }
    error.into()
}
