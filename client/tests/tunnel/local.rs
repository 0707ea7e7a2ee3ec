//! Local servers: the process on the developer's machine.

use std::net::Ipv4Addr;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::soon;

/// A listener on a free port of 127.0.0.1.
pub(crate) struct Local {
    listener: TcpListener,
    pub(crate) port: u16,
}

impl Local {
    pub(crate) async fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    pub(crate) async fn accept(&self) -> TcpStream {
        soon("a local connection", self.listener.accept()).await.unwrap().0
    }

    /// True if a connection is waiting or arrives within a moment. For "nothing arrives" only, which has no condition
    /// to wait for.
    pub(crate) async fn is_called(&self) -> bool {
        let moment = std::time::Duration::from_millis(50);
        tokio::time::timeout(moment, self.listener.accept()).await.is_ok()
    }

    /// Sends back what it gets, on each connection.
    pub(crate) fn echo(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = self.listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    // A peer that resets ends its own connection only.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        })
    }
}

/// A port of 127.0.0.1 on which nobody listens. It stays bound, so that nobody else gets it meanwhile.
pub(crate) struct Nobody {
    socket: socket2::Socket,
    pub(crate) port: u16,
}

impl Nobody {
    pub(crate) fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        Self { socket, port }
    }

    /// Somebody starts to listen after all.
    pub(crate) fn listen(self) -> Local {
        self.socket.listen(16).unwrap();
        self.socket.set_nonblocking(true).unwrap();
        Local { listener: TcpListener::from_std(self.socket.into()).unwrap(), port: self.port }
    }

    /// Listens and never accepts, with a queue that is full already: connecting hangs.
    pub(crate) async fn hang(self) -> (u16, Vec<TcpStream>, socket2::Socket) {
        self.socket.listen(0).unwrap();
        let mut queue = Vec::new();
        let moment = std::time::Duration::from_millis(200);
        while let Ok(connected) =
            tokio::time::timeout(moment, TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))).await
        {
            queue.push(connected.unwrap());
        }
        (self.port, queue, self.socket)
    }
}
