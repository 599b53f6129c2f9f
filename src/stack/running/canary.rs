//! The probe at `init` and `mount`, and what its refusal means.
//!
//! The first PUT carries the volume's encryption: a canary. Where the server refuses it, a few more
//! requests find out which setting is in the way. A mount probes with the lease (`lease`).

use futures::FutureExt;

use crate::stack::{StackError, StackErrorKind, StoreStack};
use crate::store::s3::StorageClass;
use crate::store::{ErrorClass, ProbeError, class, patiently, probe, sentence};

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

/// Whether the store puts objects into this storage class.
///
/// # Errors
/// [`StackError::Encryption`] if it does not; [`StackError::Store`].
pub(crate) async fn try_class(
    layers: &StoreStack,
    wanted: &StorageClass,
) -> Result<(), StackError> {
    if wanted.is_standard() {
        return Ok(());
    }
    let unsuitable = |message: String, hint: &str| StackError::Encryption {
        kind: StackErrorKind::Unsuitable,
        message,
        hint: hint.into(),
    };
    let Some(s3) = &layers.s3 else {
        let message = format!("{} has no storage classes", layers.place.name());
        return Err(unsuitable(
            message,
            "leave it at STANDARD; classes are for s3://BUCKET[/PREFIX]",
        ));
    };
    match patiently(|| s3.try_storage_class(wanted)).await {
        Ok(()) => Ok(()),
        Err(e) if class(&e).is_retryable() || class(&e) == ErrorClass::Auth => {
            Err(StackError::store(format!("putting an object into {wanted}"), e))
        }
        Err(e) => Err(unsuitable(
            format!(
                "the server does not put objects into storage class {wanted}: {}",
                sentence(&e)
            ),
            "choose one that it has: STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or \
             GLACIER_IR on AWS; what else has, its documentation says",
        )),
    }
}
