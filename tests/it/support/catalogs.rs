//! The catalogs that keep one contract: in memory, on SQLite, on PostgreSQL.

use archiver::catalog::{self, SharedCatalog};
use archiver_sim::MemoryCatalog;

/// Where the catalog of a test is.
pub enum Backend {
    /// In this process.
    Memory(MemoryCatalog),
    /// At the address of a database.
    Sql(String),
}

impl Backend {
    /// The catalog as one more process sees it.
    pub async fn open(&self) -> SharedCatalog {
        match self {
            Self::Memory(catalog) => catalog.for_another_process().shared(),
            Self::Sql(url) => catalog::open(url).await.unwrap(),
        }
    }
}

/// Each test on each catalog; those behind `[databases only]` not in memory, where nobody writes beside the catalog and each call is atomic.
macro_rules! on_each_catalog {
    ($($name:ident => $test:path;)* $([databases only] $($of_databases:ident => $database_test:path;)*)?) => {
        mod memory {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $test($crate::support::catalogs::Backend::Memory(archiver_sim::MemoryCatalog::new())).await;
            })*
        }
        $crate::support::catalogs::on_databases! {
            $($name => $test;)* $($($of_databases => $database_test;)*)?
        }
    };
}

/// Each test on SQLite and on PostgreSQL.
macro_rules! on_databases {
    ($($name:ident => $test:path;)*) => {
        mod sqlite {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", dir.path().join("a new folder/100%/catalog.sqlite").display());
                $test($crate::support::catalogs::Backend::Sql(url)).await;
            })*
        }
        mod postgres {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let database = $crate::support::databases::with_tables();
                $test($crate::support::catalogs::Backend::Sql(database.url())).await;
            })*
        }
    };
}

pub(crate) use {on_databases, on_each_catalog};
