//! RabbitMQ as the broker.

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::publisher::{self, RabbitArchivePublisher, RabbitPublisher};
use super::{
    ArchivePublisher, Broker, BrokerConfig, BrokerError, BrokerState, DeliveryHandler, Publisher, consumer, hints,
    limits, open, wakeup,
};

/// A RabbitMQ. Connects only when it is used.
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
        let (connection, channel) = open(&self.config).await?;
        let probed = publisher::probe(&connection, &channel, &self.config).await;
        limits::close(connection, "checked").await;
        probed
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, BrokerError> {
        Ok(Box::new(RabbitPublisher::connect(&self.config).await?))
    }

    async fn archive_publisher(&self) -> Result<Box<dyn ArchivePublisher>, BrokerError> {
        Ok(Box::new(RabbitArchivePublisher::connect(&self.config).await?))
    }

    async fn consume(
        &self,
        capacity: watch::Receiver<usize>,
        state: &watch::Sender<BrokerState>,
        cancel: &CancellationToken,
        handler: &dyn DeliveryHandler,
    ) {
        consumer::consume(&self.config, capacity, state, cancel, handler).await;
    }

    async fn publish_wakeups(&self, requested: &Notify, cancel: &CancellationToken) {
        wakeup::publish_wakeups(&self.config, requested, cancel).await;
    }

    async fn consume_wakeups(&self, on_wakeup: &(dyn Fn() + Send + Sync), cancel: &CancellationToken) {
        wakeup::consume_wakeups(&self.config, on_wakeup, cancel).await;
    }

    async fn consume_hints(
        &self,
        queue: &str,
        handle: &(dyn for<'m> Fn(&'m [u8]) + Send + Sync),
        cancel: &CancellationToken,
    ) {
        hints::consume_hints(&self.config, queue, handle, cancel).await;
    }
}
