log_softmax = softmax = None
