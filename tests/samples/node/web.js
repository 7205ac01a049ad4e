// A web function: `GET /hello?name=World`, and a 404 for everything else.
'use strict';
const http = require('http');

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://function');
  response.setHeader('Content-Type', 'text/plain; charset=utf-8');
  if (url.pathname === '/hello') {
    response.end(`Hello, ${url.searchParams.get('name') ?? 'World'}!\n`);
  } else {
    response.statusCode = 404;
    response.end('There is only /hello.\n');
  }
});
// The platforms keep connections, and the time limit is theirs.
server.requestTimeout = 0;
server.keepAliveTimeout = 0;
server.listen(9000, '0.0.0.0', () => console.log('ready for requests'));
