// bull-board over queues of a cluster. Beside `npm install quorumq-bullmq bullmq @bull-board/api @bull-board/express express`:
// NODES=http://127.0.0.1:8080,http://127.0.0.1:8081 QUEUES=mails,reports node board.mjs, then http://127.0.0.1:3000
import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter';
import { ExpressAdapter } from '@bull-board/express';
import express from 'express';
import { Queue, use } from 'quorumq-bullmq';

use({ nodes: process.env.NODES.split(','), token: process.env.TOKEN });
const queues = process.env.QUEUES.split(',').map(name => new BullMQAdapter(new Queue(name)));
const serverAdapter = new ExpressAdapter();
createBullBoard({ queues, serverAdapter });

const app = express();
app.use('/', serverAdapter.getRouter());
const port = Number(process.env.PORT ?? 3000);
app.listen(port, '127.0.0.1', () => console.log(`bull-board: http://127.0.0.1:${port}`));
