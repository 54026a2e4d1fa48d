/**
 * BullMQ on quorumq. `use({ nodes: ['http://queue-1:8080'] })` once, and BullMQ's own classes keep their jobs in the cluster; or take
 * the classes from here in place of BullMQ's, which ask for no `connection`.
 */
import * as bullmq from 'bullmq';
import type {
  FlowProducer as BullFlowProducer,
  FlowProducerOptions,
  Processor,
  Queue as BullQueue,
  QueueEvents as BullQueueEvents,
  QueueEventsOptions,
  QueueEventsProducer as BullQueueEventsProducer,
  QueueEventsProducerOptions,
  QueueOptions,
  Worker as BullWorker,
  WorkerOptions,
} from 'bullmq';
import { createQuorumqBackend } from './backend.js';
import { setDefaults, type QuorumqOptions } from './options.js';

export * from 'bullmq';
export { createQuorumqBackend, QuorumqBackend } from './backend.js';
export { QuorumqError } from './errors.js';
export type { QuorumqOptions } from './options.js';

/** Has every Queue, Worker, QueueEvents and FlowProducer of this process work on a cluster, whatever `connection` they are given. */
export function use(options: QuorumqOptions): void {
  setDefaults(options);
  bullmq.setDefaultBackendFactory(createQuorumqBackend as never);
}

/** Options without the need of a connection: one that names no nodes is that of `use`, or of QUORUMQ_NODES. */
type Loose<O> = Omit<O, 'connection'> & { connection?: QuorumqOptions | string | object };

export interface Classes {
  Queue: new <D = any, R = any, N extends string = string>(name: string, opts?: Loose<QueueOptions>) => BullQueue<D, R, N>;
  Worker: {
    new <D = any, R = any, N extends string = string>(
      name: string,
      processor?: string | URL | null | Processor<D, R, N>,
      opts?: Loose<WorkerOptions>,
    ): BullWorker<D, R, N>;
    RateLimitError: typeof BullWorker.RateLimitError;
  };
  QueueEvents: new (name: string, opts?: Loose<QueueEventsOptions>) => BullQueueEvents;
  QueueEventsProducer: new (name: string, opts?: Loose<QueueEventsProducerOptions>) => BullQueueEventsProducer;
  FlowProducer: new (opts?: Loose<FlowProducerOptions>) => BullFlowProducer;
}

/** BullMQ's classes, bound to a cluster; without options to that of `use` or of QUORUMQ_NODES. */
export function withBackend(options?: QuorumqOptions): Classes {
  const connected = (opts?: object): any => ({ ...opts, connection: (opts as { connection?: unknown })?.connection ?? options ?? {} });
  const factory = createQuorumqBackend as never;
  const { Queue, Worker, QueueEvents, QueueEventsProducer, FlowProducer } = bullmq as any;
  return {
    Queue: class extends Queue {
      constructor(name: string, opts?: object) {
        super(name, connected(opts), factory);
      }
    },
    Worker: class extends Worker {
      constructor(name: string, processor?: unknown, opts?: object) {
        super(name, processor, connected(opts), factory);
      }
    },
    QueueEvents: class extends QueueEvents {
      constructor(name: string, opts?: object) {
        super(name, connected(opts), factory);
      }
    },
    QueueEventsProducer: class extends QueueEventsProducer {
      constructor(name: string, opts?: object) {
        super(name, connected(opts), factory);
      }
    },
    FlowProducer: class extends FlowProducer {
      constructor(opts?: object) {
        super(connected(opts), factory);
      }
    },
  } as unknown as Classes;
}

const classes = withBackend();
export const { Queue, Worker, QueueEvents, QueueEventsProducer, FlowProducer } = classes;
export type Queue<D = any, R = any, N extends string = string> = BullQueue<D, R, N>;
export type Worker<D = any, R = any, N extends string = string> = BullWorker<D, R, N>;
export type QueueEvents = BullQueueEvents;
export type QueueEventsProducer = BullQueueEventsProducer;
export type FlowProducer = BullFlowProducer;
