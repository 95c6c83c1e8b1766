// The test client for gRPC in Node.js. What it does is said in the README of the folder above.
import readline from 'node:readline';
import grpc from '@grpc/grpc-js';
import xds from '@grpc/grpc-js-xds';

xds.register();

const toBytes = (text) => Buffer.from(text);
const toText = (bytes) => bytes.toString();

// ask makes one call and resolves to the backend's name.
function ask(client) {
  return new Promise((resolve, reject) => {
    const options = { deadline: Date.now() + 10_000 };
    client.makeUnaryRequest('/fairlead.test.Backend/Name', toBytes, toText, '', options, (error, name) => {
      if (error) reject(error);
      else resolve(name);
    });
  });
}

// call makes calls and counts what comes of them.
async function call(client, calls) {
  const answers = {}, errors = {};
  for (let i = 0; i < calls; i++) {
    try {
      const name = await ask(client);
      answers[name] = (answers[name] ?? 0) + 1;
    } catch (error) {
      const text = `${grpc.status[error.code]}: ${error.details}`;
      errors[text] = (errors[text] ?? 0) + 1;
    }
  }
  return { answers, errors };
}

const clients = new Map();
for await (const order of readline.createInterface({ input: process.stdin })) {
  const [calls, target] = order.split(' ');
  if (!clients.has(target)) clients.set(target, new grpc.Client(target, grpc.credentials.createInsecure()));
  console.log(JSON.stringify(await call(clients.get(target), Number(calls))));
}
process.exit(0); // Clients' streams would keep the program for minutes.
