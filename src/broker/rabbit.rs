//! RabbitMQ as the broker.

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::publisher::{RabbitArchivePublisher, RabbitPublisher};
use super::{
    ArchivePublisher, Broker, BrokerConfig, BrokerError, BrokerState, DeliveryHandler, Publisher, consumer, failed,
    hints, nudge, open,
};

/// A RabbitMQ. Connects to nothing before it is asked for something.
#[derive(Debug, Clone)]
pub struct RabbitBroker {
    config: BrokerConfig,
}

impl RabbitBroker {
    /// The broker at an address.
    #[must_use]
    pub const fn new(config: BrokerConfig) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn probe(&self) -> Result<(), BrokerError> {
        let (connection, _) = open(&self.config).await?;
        connection.close(200, "checked".into()).await.map_err(failed("close a connection"))
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        Ok(Box::new(RabbitPublisher::connect(&self.config).await?))
    }

    async fn archive_publisher(&self) -> Result<Box<dyn ArchivePublisher>, BrokerError> {
        Ok(Box::new(RabbitArchivePublisher::connect(&self.config).await?))
    }

    async fn consume(
        &self,
        room: watch::Receiver<usize>,
        state: &watch::Sender<BrokerState>,
        cancel: &CancellationToken,
        handler: &dyn DeliveryHandler,
    ) {
        consumer::consume(&self.config, room, state, cancel, handler).await;
    }

    async fn keep_nudging(&self, wanted: &Notify, cancel: &CancellationToken) {
        nudge::keep_nudging(&self.config, wanted, cancel).await;
    }

    async fn hear_nudges(&self, nudged: &(dyn Fn() + Send + Sync), cancel: &CancellationToken) {
        nudge::hear_nudges(&self.config, nudged, cancel).await;
    }

    async fn listen(&self, queue: &str, take: &(dyn for<'m> Fn(&'m [u8]) + Send + Sync), cancel: &CancellationToken) {
        hints::listen(&self.config, queue, take, cancel).await;
    }
}
