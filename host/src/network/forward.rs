//! Copies bytes between a real socket and a pod's stream, each direction on its own: half-close passes through, a reset
//! resets. Owns both ends until both directions are done.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::{Reader, SocketError, Stream, Writer};

const CHUNK: usize = 16 * 1024;

/// Ends when both directions have ended, or one failed.
pub(crate) async fn forward(mut socket: TcpStream, mut stream: Stream) {
    let both = {
        let (read, write) = socket.split();
        tokio::try_join!(
            inward(read, &mut stream.writer),
            outward(&mut stream.reader, write)
        )
    };
    if both.is_err() {
        stream.reset();
        // The kernel sends RST for a socket closed with linger 0. A failure here changes nothing.
        drop(socket.set_zero_linger());
    }
}

async fn inward(mut socket: ReadHalf<'_>, writer: &mut Writer) -> Result<(), SocketError> {
    let mut buffer = BytesMut::new();
    loop {
        let room = writer.ready().await?.min(CHUNK);
        socket
            .readable()
            .await
            .map_err(|error| SocketError::from(&error))?;
        buffer.reserve(room);
        let read = (&mut socket).take(room as u64).read_buf(&mut buffer).await;
        match read {
            Ok(0) => {
                writer.shutdown();
                return Ok(());
            }
            Ok(_) => writer.write_all(buffer.split().freeze()).await?,
            Err(error) => return Err(SocketError::from(&error)),
        }
    }
}

async fn outward(reader: &mut Reader, mut socket: WriteHalf<'_>) -> Result<(), SocketError> {
    while let Some(chunk) = reader.read().await {
        socket
            .write_all(&chunk?)
            .await
            .map_err(|error| SocketError::from(&error))?;
    }
    socket
        .shutdown()
        .await
        .map_err(|error| SocketError::from(&error))
}
