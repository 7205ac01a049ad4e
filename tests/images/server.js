// A function in Node.js, for the image that the tests make from Debian.
'use strict';
const http = require('http');

const port = Number(process.env.FC_CUSTOM_LISTEN_PORT || 9000);

function answer(response, value) {
  const data = JSON.stringify(value);
  response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(data) });
  response.end(data);
}

const server = http.createServer((request, response) => {
  const path = request.url.split('?')[0];
  if (path === '/echo') {
    response.writeHead(200);
    request.pipe(response);
    return;
  }
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts).toString();
    if (path === '/invoke' || path === '/event-invoke') {
      answer(response, { server: 'node', path, event: JSON.parse(body || 'null') });
    } else {
      answer(response, { server: 'node', method: request.method, uri: request.url, headers: request.headers, body });
    }
  });
});
server.timeout = 0;
server.keepAliveTimeout = 0;
server.listen(port, '0.0.0.0', () => console.log(`node ${process.version} listens on ${port}`));
process.on('SIGTERM', () => process.exit(0));
