//! Answers for a method that panics. The library would answer nothing, and the caller's place would never be free again.

use std::collections::HashMap;
use std::fmt::Write;
use std::future::Future;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use zbus::export::async_trait::async_trait;
use zbus::message::{Header, Message};
use zbus::names::{InterfaceName, MemberName};
use zbus::object_server::{DispatchResult, Interface, SignalEmitter};
use zbus::{BoxDBusError, Connection, ObjectServer, OwnedVariant, Variant, fdo};

use super::error::BusError;

/// An object whose methods answer with an error when they panic.
pub struct Guarded<T>(pub T);

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Runs a part of a call, and returns an error for the caller if it panics. The panic itself is in the log.
async fn caught<R>(work: impl Future<Output = R>) -> Result<R, BusError> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| {
        BusError::Internal(
            "the service has made a mistake; its log tells more (`journalctl -u animd`)".into(),
        )
    })
}

#[async_trait]
impl<T: Interface> Interface for Guarded<T> {
    fn name() -> InterfaceName<'static> {
        T::name()
    }

    async fn get(
        &self,
        property_name: &str,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> Option<Result<OwnedVariant, BoxDBusError>> {
        match caught(self.0.get(property_name, server, connection, header, emitter)).await {
            Ok(got) => got,
            Err(e) => Some(Err(Box::new(e))),
        }
    }

    async fn get_all(
        &self,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> fdo::Result<HashMap<String, OwnedVariant>> {
        match caught(self.0.get_all(server, connection, header, emitter)).await {
            Ok(got) => got,
            Err(e) => Err(fdo::Error::Failed(e.to_string())),
        }
    }

    async fn set_mut(
        &mut self,
        property_name: &str,
        value: &Variant<'_>,
        server: &ObjectServer,
        connection: &Connection,
        header: Option<&Header<'_>>,
        emitter: &SignalEmitter<'_>,
    ) -> Option<Result<(), BoxDBusError>> {
        self.0.set_mut(property_name, value, server, connection, header, emitter).await
    }

    fn call<'call>(
        &'call self,
        server: &'call ObjectServer,
        connection: &'call Connection,
        message: &'call Message,
        name: MemberName<'call>,
    ) -> DispatchResult<'call> {
        guarded(self.0.call(server, connection, message, name))
    }

    fn call_mut<'call>(
        &'call mut self,
        server: &'call ObjectServer,
        connection: &'call Connection,
        message: &'call Message,
        name: MemberName<'call>,
    ) -> DispatchResult<'call> {
        guarded(self.0.call_mut(server, connection, message, name))
    }

    fn introspect_to_writer(&self, writer: &mut dyn Write, level: usize) {
        self.0.introspect_to_writer(writer, level);
    }
}

fn guarded(dispatched: DispatchResult<'_>) -> DispatchResult<'_> {
    match dispatched {
        DispatchResult::Async(work) => DispatchResult::Async(Box::pin(async move {
            match caught(work).await {
                Ok(done) => done,
                Err(e) => Err(Box::new(e) as BoxDBusError),
            }
        })),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(panics: bool) -> Result<(), BoxDBusError> {
        let work = async move {
            assert!(!panics, "it falls");
            Ok(())
        };
        match guarded(DispatchResult::Async(Box::pin(work))) {
            DispatchResult::Async(work) => work.await,
            _ => panic!("the call is lost"),
        }
    }

    #[tokio::test]
    async fn a_method_that_panics_is_answered() {
        let error = answer(true).await.expect_err("it fell");
        assert_eq!(error.name().as_str(), "org.animd.Animd1.Error.Internal");
        assert!(answer(false).await.is_ok());
        assert!(matches!(guarded(DispatchResult::NotFound), DispatchResult::NotFound));
    }
}
