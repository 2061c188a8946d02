//! Export of spans to a collector, by OTLP over gRPC. Part of the build with the feature `otlp` only.

use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, filter};

use crate::model::TraceParent;

/// A collector that is gone must not hold up the end of growd.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

pub struct Export(SdkTracerProvider);

impl Export {
    /// Takes the tokio runtime that it is called in for the connection, which is made when there is something to send.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub fn new(endpoint: &str) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let host = nix::sys::utsname::uname().map(|names| names.nodename().to_string_lossy().into_owned());
        let resource = Resource::builder()
            .with_service_name("growd")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("host.name", host.unwrap_or_default()))
            .build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// Only our own spans: those of the connection to the collector would make new ones for ever.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let ours: FilterFn = filter::filter_fn(|metadata| metadata.target().starts_with("growd"));
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("growd")).with_location(false).with_filter(ours)
    }

    /// Sends what has not been sent.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_LIMIT) {
            warn!(%error, "the last spans could not be exported");
        }
    }
}

/// Makes the span part of the caller's trace.
pub fn follow(span: &Span, caller: Option<TraceParent>) {
    let Some(caller) = caller else { return };
    let context = SpanContext::new(
        TraceId::from_bytes(caller.trace_id.to_be_bytes()),
        SpanId::from_bytes(caller.span_id.to_be_bytes()),
        TraceFlags::new(caller.flags),
        true,
        TraceState::default(),
    );
    // Fails where spans are not exported, or not at this level.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
}

pub fn mark_failed(span: &Span, reason: &str) {
    span.set_status(Status::error(reason.to_owned()));
}

/// The span as what follows it names it; `None` where it is not exported.
pub fn exported(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| TraceParent {
        trace_id: u128::from_be_bytes(span.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(span.span_id().to_bytes()),
        flags: span.trace_flags().to_u8(),
    })
}
